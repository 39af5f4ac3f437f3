// The cells of this folder as SK_MORE_CELLS wants them (csrc/cells/all.h).
#pragma once
#include "leaky_rnn.h"
#include "peephole_lstm.h"
#include "slstm.h"

#define SK_FOR_EACH_MORE_CELL(DO) \
  DO(LeakyRnn, leaky_rnn)         \
  DO(PeepholeLstm, peephole_lstm) \
  DO(Slstm, slstm)
