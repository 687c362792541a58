#pragma once

// The tile registers of AMX and the product of tiles of signed bytes. Only for *_amx.cc.
//
// C (16 rows of 16 i32) += A (16 rows of 32 i8) * B (8 rows of 16 groups of four i8): c[m][n] += sum over k and i of a[m][4k + i]
// * b[k][n][i] (Intel's manual, TDPBSSD). Whole numbers, so no order of the columns matters.

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ferry {
namespace {

// What a tile register holds.
struct TileShape {
  int rows, row_bytes;
};

// Ends with ReleaseTiles, so that no thread carries tiles through a switch.
inline void ConfigureTiles(const TileShape (&shapes)[8]) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  static_assert(sizeof(config) == 64);
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = static_cast<uint8_t>(shapes[i].rows), config.row_bytes[i] = static_cast<uint16_t>(shapes[i].row_bytes);
  }
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
inline void ReleaseTiles() { asm volatile("tilerelease" ::: "memory"); }

// Rows are `stride` bytes apart. The compiler's own intrinsics do not say that they read and write memory (GCC 12).
template <int kTile>
inline void LoadTile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void StoreTileTo(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kC, int kA, int kB>
inline void MultiplyTiles() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace ferry
