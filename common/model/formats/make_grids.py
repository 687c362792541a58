#!/usr/bin/env python3
"""Writes iq_grids.inc: the grids of ggml's IQ types, as the `gguf` package (pip install gguf) decodes with them.

    python3 common/model/formats/make_grids.py > common/model/formats/iq_grids.inc

The grids are part of the format: they give the vector of an index. They come from ggml (github.com/ggml-org/llama.cpp, MIT licence,
copyright the ggml authors), which generated them; this file's layout and its packing are ours.
"""

from gguf import quants

GRIDS = [("IQ2_XXS", "kGridIq2Xxs"), ("IQ2_XS", "kGridIq2Xs"), ("IQ2_S", "kGridIq2S"), ("IQ3_XXS", "kGridIq3Xxs"),
         ("IQ3_S", "kGridIq3S"), ("IQ1_S", "kGridIq1")]


def main():
    print("// Made by make_grids.py from the gguf package; do not edit. Data of ggml's formats (github.com/ggml-org/llama.cpp,")
    print("// MIT licence, copyright the ggml authors). Entry i holds the four or eight numbers of index i, the first in the lowest byte.")
    for type_name, name in GRIDS:
        quant = getattr(quants, type_name)
        quant.init_grid()
        grid = quant.grid.reshape(quant.grid_shape).astype("int8")
        width = grid.shape[1]
        words = [int.from_bytes(row.tobytes(), "little") for row in grid]
        print(f"inline constexpr uint{8 * width}_t {name}[{len(words)}] = {{")
        per_line = 11 if width == 4 else 6
        for at in range(0, len(words), per_line):
            print("    " + ", ".join(f"0x{word:0{2 * width}x}" for word in words[at:at + per_line]) + ",")
        print("};")


main()
