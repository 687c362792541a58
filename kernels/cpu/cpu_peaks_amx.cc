#include "kernels/cpu/cpu_peaks.h"

#if !defined(__AVX512VNNI__)

namespace ferry {
const PeakLoops* AmxPeakLoops() { return nullptr; }
}  // namespace ferry

#else

#include "kernels/cpu/amx_tiles.h"

namespace ferry {
namespace {

// Four sums, so that none waits for itself.
int64_t Int8Tiles(int64_t iterations) {
  alignas(64) static constexpr std::byte kZeros[1024] = {};
  constexpr TileShape kWhole = {16, 64};
  ConfigureTiles({kWhole, kWhole, kWhole, kWhole, kWhole, kWhole, kWhole, kWhole});
  ZeroTile<0>();
  ZeroTile<1>();
  ZeroTile<2>();
  ZeroTile<3>();
  LoadTile<4>(kZeros, 64);
  LoadTile<5>(kZeros, 64);
  LoadTile<6>(kZeros, 64);
  LoadTile<7>(kZeros, 64);
  for (int64_t i = 0; i < iterations; ++i) {
    MultiplyTiles<0, 4, 6>();
    MultiplyTiles<1, 5, 6>();
    MultiplyTiles<2, 4, 7>();
    MultiplyTiles<3, 5, 7>();
  }
  ReleaseTiles();
  return int64_t{4} * 16 * 16 * 64 * 2;
}

}  // namespace

const PeakLoops* AmxPeakLoops() {
  static const PeakLoops loops = [] {
    PeakLoops with_tiles = *Avx512PeakLoops();
    with_tiles.int8_tiles = Int8Tiles;
    return with_tiles;
  }();
  return &loops;
}

}  // namespace ferry

#endif
