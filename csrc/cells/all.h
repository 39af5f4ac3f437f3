// The list of cells, and the only switch over them.
//
// Cells from outside: SK_MORE_CELLS names a header that includes them and defines
// SK_FOR_EACH_MORE_CELL; with SK_ONLY_MORE_CELLS they stand in place of the package's own.
#pragma once
#include "gru.h"
#include "gru_reset_before.h"
#include "lstm.h"
#include "rnn.h"
#ifdef SK_MORE_CELLS
#include SK_MORE_CELLS
#else
#define SK_FOR_EACH_MORE_CELL(DO)
#endif

// The order is the value of `Cell`; the second column the prefix of the op names.
#ifdef SK_ONLY_MORE_CELLS
#define SK_FOR_EACH_CELL SK_FOR_EACH_MORE_CELL
#else
#define SK_FOR_EACH_CELL(DO)           \
  DO(Lstm, lstm)                       \
  DO(Gru, gru)                         \
  DO(GruResetBefore, gru_reset_before) \
  DO(RnnTanh, rnn_tanh)                \
  DO(RnnRelu, rnn_relu)                \
  SK_FOR_EACH_MORE_CELL(DO)
#endif

namespace seqkernels {

enum class Cell : int32_t {
#define SK_ENUM(Type, name) k##Type,
  SK_FOR_EACH_CELL(SK_ENUM)
#undef SK_ENUM
};

template <typename C>
inline constexpr Cell kCellOf{};
#define SK_VALUE(Type, name) \
  template <>                \
  inline constexpr Cell kCellOf<Type> = Cell::k##Type;
SK_FOR_EACH_CELL(SK_VALUE)
#undef SK_VALUE

// Stands for a cell's type where a value is wanted.
template <typename C>
struct CellType {
  using type = C;
};

// f(CellType<C>()) for the type of a cell.
template <typename F>
auto visit(Cell cell, F&& f) {
  switch (cell) {
#define SK_CASE(Type, name) \
  case Cell::k##Type:       \
    return f(CellType<Type>());
    SK_FOR_EACH_CELL(SK_CASE)
#undef SK_CASE
  }
  __builtin_unreachable();
}

constexpr int kMaxStages = 2;

// A cell's declaration as values.
struct CellFacts {
  const char* name;
  int gates, states, saved, parameters, stages;
  bool uses_h;
  unsigned kept, reads_state, reads_new_state, separate;
  Stage stage[kMaxStages];
};

template <typename C>
constexpr CellFacts make_facts(const char* name) {
  static_assert(kStageCount<C> <= kMaxStages, "a step has at most two products");
  CellFacts facts{name,           C::kGates,         C::kStates,   C::kSaved,
                  C::kParameters, kStageCount<C>,    C::kUsesH,    C::kKept,
                  C::kReadsState, C::kReadsNewState, C::kSeparate, {}};
  for (int s = 0; s < kStageCount<C>; ++s) facts.stage[s] = C::kStages[s];
  return facts;
}

constexpr CellFacts kFacts[] = {
#define SK_FACTS(Type, name) make_facts<Type>(#name),
    SK_FOR_EACH_CELL(SK_FACTS)
#undef SK_FACTS
};
inline const CellFacts& facts(Cell cell) { return kFacts[static_cast<int>(cell)]; }
// kSeparateColumns of such a cell.
inline int separate_columns(const CellFacts& cell) {
  return size_of_set(cell.separate) + cell.parameters;
}

enum class Dtype : int32_t { kFloat64, kFloat32, kFloat16, kBFloat16 };

}  // namespace seqkernels
