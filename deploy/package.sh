#!/usr/bin/env bash
# Makes dist/ferry-VERSION-linux-MACHINE.tar.xz: the programs, the shared libraries they need except libc's and the driver's, the
# notices of these libraries and of those that are compiled in, the bundled model, proto/, docs/, units and a README of its own. It
# runs on another Linux of this processor family with glibc 2.36 or newer and nothing installed.
#
#   deploy/package.sh [BUILD_DIR]     default: builds the preset `package` (every GPU architecture where nvcc is found)
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/packages.sh

build=${1:-}
if [ -z "$build" ]; then
  ferry_install "${ferry_build_packages[@]}" xz-utils
  cmake --preset package >/dev/null
  cmake --build --preset package --target ferry ferry-coordinator ferry-worker ferry-expert-host ferry-gateway
  build=build/package
fi

version=$("$build/bin/ferry" --version | awk '{print $2}')
name=ferry-$version-linux-$(uname -m)
stage=dist/$name
rm -rf "$stage"
mkdir -p "$stage/bin" "$stage/lib" "$stage/models"

# libc's own parts and the NVIDIA driver belong to the machine it runs on.
belongs_to_the_machine='^(ld-linux.*|libc|libm|libdl|libpthread|librt|libresolv|libcuda|linux-vdso)\.so'
for program in ferry ferry-coordinator ferry-worker ferry-expert-host ferry-gateway; do
  install -m 755 "$build/bin/$program" "$stage/bin/"
  ldd "$build/bin/$program" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | while read -r library; do
    basename "$library" | grep -Eq "$belongs_to_the_machine" || cp -Ln "$library" "$stage/lib/" 2>/dev/null || true
  done
done
strip --strip-unneeded "$stage"/bin/* "$stage"/lib/*
# Programs find their libraries beside themselves, wherever the folder is put. $ORIGIN was linked in (cmake/FerryToolchain.cmake);
# the libraries among themselves are found through the program's path list as well, because it is RPATH and not RUNPATH.
cp models/demo-moe.gguf models/README.md "$stage/models/"
cp deploy/archive.md "$stage/README.md"
mkdir -p "$stage/deploy"
cp deploy/*.service deploy/grafana-dashboard.json "$stage/deploy/"
find proto docs -type f \( -name '*.proto' -o -name '*.md' \) -exec cp --parents {} "$stage/" \;

# The package that a file belongs to. The loader names /lib where the package has /usr/lib.
package_of() {
  { dpkg -S "$(readlink -f "$1")" 2>/dev/null || dpkg -S "$1" 2>/dev/null || true; } | head -1 | cut -d: -f1
}

# The notices of the libraries in lib/ and of those whose headers and archives are compiled in.
notices() {
  local program package library
  printf '%s\n' libcli11-dev nlohmann-json3-dev libspdlog-dev libfmt-dev "${boost_package:-}" libxxhash-dev libabsl-dev libprotobuf-dev libgrpc++-dev
  for program in "$build"/bin/ferry*; do
    [ -x "$program" ] || continue
    ldd "$program" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// {print $3}'
  done | sort -u | while read -r library; do
    [ -e "$stage/lib/$(basename "$library")" ] || continue
    package=$(package_of "$library")
    [ -n "$package" ] && echo "$package"
  done
}
boost_package=$(printf '%s\n' "${ferry_build_packages[@]}" | grep boost || true)
mkdir -p "$stage/notices"
notices | sort -u | while read -r package; do
  if [ -n "$package" ] && [ -e "/usr/share/doc/$package/copyright" ]; then
    cp -L "/usr/share/doc/$package/copyright" "$stage/notices/$package"
  fi
done
# A library without a notice must not be passed on.
for library in "$stage"/lib/*; do
  [ -e "$library" ] || continue
  path=$(ldd "$build"/bin/ferry* 2>/dev/null | awk '{print $3}' | grep "/$(basename "$library")$" | head -1 || true)
  package=$(package_of "$path")
  case $(basename "$library") in
    libcudart* | libcublas*) cp -n "$(dirname "$(dirname "$(readlink -f "$path")")")"/*EULA* "$stage/notices/" 2>/dev/null || true ;;
    *) [ -e "$stage/notices/$package" ] || { echo "error: there is no notice of $(basename "$library") (package '$package')" >&2; exit 1; } ;;
  esac
done

tar -C dist -cJf "dist/$name.tar.xz" "$name"
ferry_say "dist/$name.tar.xz: $(du -h "dist/$name.tar.xz" | cut -f1), unpacked $(du -sh "$stage" | cut -f1)"
echo "dist/$name.tar.xz"
