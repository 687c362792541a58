#!/usr/bin/env bash
# Makes dist/ferry-VERSION-linux-MACHINE.tar.xz: the programs, the shared libraries they need except libc's and the driver's, and the
# bundled model. It runs on another Linux of this processor family with glibc 2.36 or newer and nothing installed.
#
#   deploy/package.sh [BUILD_DIR]     default: builds the preset `package` (every GPU architecture where nvcc is found)
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/packages.sh

build=${1:-}
if [ -z "$build" ]; then
  ferry_install "${ferry_build_packages[@]}" xz-utils
  cmake --preset package >/dev/null
  cmake --build --preset package --target ferry ferry-coordinator ferry-worker ferry-gateway
  build=build/package
fi

version=$("$build/bin/ferry" --version | awk '{print $2}')
name=ferry-$version-linux-$(uname -m)
stage=dist/$name
rm -rf "$stage"
mkdir -p "$stage/bin" "$stage/lib" "$stage/models"

# libc's own parts and the NVIDIA driver belong to the machine it runs on.
belongs_to_the_machine='^(ld-linux.*|libc|libm|libdl|libpthread|librt|libresolv|libcuda|linux-vdso)\.so'
for program in ferry ferry-coordinator ferry-worker ferry-gateway; do
  install -m 755 "$build/bin/$program" "$stage/bin/"
  ldd "$build/bin/$program" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | while read -r library; do
    basename "$library" | grep -Eq "$belongs_to_the_machine" || cp -Ln "$library" "$stage/lib/" 2>/dev/null || true
  done
done
strip --strip-unneeded "$stage"/bin/* "$stage"/lib/*
# Programs find their libraries beside themselves, wherever the folder is put. $ORIGIN was linked in (cmake/FerryToolchain.cmake);
# the libraries among themselves are found through the program's path list as well, because it is RPATH and not RUNPATH.
cp models/demo-moe.gguf models/README.md "$stage/models/"
cp README.md "$stage/"

tar -C dist -cJf "dist/$name.tar.xz" "$name"
ferry_say "dist/$name.tar.xz: $(du -h "dist/$name.tar.xz" | cut -f1), unpacked $(du -sh "$stage" | cut -f1)"
echo "dist/$name.tar.xz"
