// Matrix products of the emulator: gathers the fragments of a warp into plain matrices, multiplies
// in float32, and hands the result fragments back.
#include "emu_core.h"

namespace emu {
namespace {

float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

float bfloat16_to_float(uint16_t bits) { return from_bits(uint32_t(bits) << 16); }

struct HalfTable {
  float value[1 << 16];
  HalfTable() {
    for (uint32_t h = 0; h < 1 << 16; ++h) {
      const uint32_t sign = (h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
      if (exponent == 31) {
        value[h] = from_bits(sign | 0x7f800000 | mantissa << 13);
      } else if (exponent == 0) {
        value[h] = (sign ? -1.0f : 1.0f) * float(mantissa) * from_bits((127 - 24) << 23);
      } else {
        value[h] = from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
      }
    }
  }
};
const HalfTable half_table;

// d [16, 8] += a [16, K] b [K, 8]
template <int K>
void multiply(const float (&a)[16][K], const float (&b)[K][8], Fragments* lanes, Meeting& meeting) {
  float d[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < K; ++k) {
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, quad = lane % 4;
    for (int i = 0; i < 4; ++i) lanes[lane].d[i] += d[group + i / 2 * 8][2 * quad + i % 2];
    memcpy(meeting.slot[lane], &lanes[lane], sizeof(Fragments));
  }
}

template <typename Convert>
void finish_16(Meeting& meeting, Convert convert) {
  Fragments lanes[32];
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    memcpy(&lanes[lane], meeting.slot[lane], sizeof(Fragments));
    const int group = lane / 4, quad = lane % 4;
    for (int high = 0; high < 2; ++high) {
      for (int i = 0; i < 4; ++i) {
        a[group + i % 2 * 8][2 * quad + high + i / 2 * 8] =
            convert(uint16_t(lanes[lane].a[i] >> 16 * high));
      }
      for (int i = 0; i < 2; ++i) {
        b[2 * quad + high + i * 8][group] = convert(uint16_t(lanes[lane].b[i] >> 16 * high));
      }
    }
  }
  multiply<16>(a, b, lanes, meeting);
}

}  // namespace

float half_to_float(uint16_t bits) { return half_table.value[bits]; }

void finish_mma_half(Meeting& meeting) { finish_16(meeting, half_to_float); }
void finish_mma_bfloat16(Meeting& meeting) { finish_16(meeting, bfloat16_to_float); }

void finish_mma_tf32(Meeting& meeting) {
  constexpr uint32_t kKept = 0xffffe000;  // the tensor core reads no more of the mantissa
  Fragments lanes[32];
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    memcpy(&lanes[lane], meeting.slot[lane], sizeof(Fragments));
    const int group = lane / 4, quad = lane % 4;
    for (int i = 0; i < 4; ++i) {
      a[group + i % 2 * 8][quad + i / 2 * 4] = from_bits(lanes[lane].a[i] & kKept);
    }
    for (int i = 0; i < 2; ++i) b[quad + i * 4][group] = from_bits(lanes[lane].b[i] & kKept);
  }
  multiply<8>(a, b, lanes, meeting);
}

}  // namespace emu
