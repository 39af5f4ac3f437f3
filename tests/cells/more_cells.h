// Cells of the tests, which the package does not have.
#pragma once
#include "leaky_rnn.h"
#include "peephole_lstm.h"
#include "scaled_gru.h"
#include "slstm.h"

#define SK_FOR_EACH_MORE_CELL(DO) \
  DO(LeakyRnn, leaky_rnn)         \
  DO(PeepholeLstm, peephole_lstm) \
  DO(ScaledGru, scaled_gru)       \
  DO(Slstm, slstm)
