#!/usr/bin/env bash
# Unpacks Debian 12's arm64 libraries that Ferry links, with all that they need, into a folder for a cross compiler. Nothing of this
# system changes: apt resolves and downloads them with lists and a status of its own.
#
#   deploy/aarch64-sysroot.sh [FOLDER]      default build/aarch64-sysroot; left alone where it is complete
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/packages.sh

root=$(realpath -m "${1:-build/aarch64-sysroot}")
libraries=(
  libc6-dev libstdc++-12-dev libgrpc-dev libgrpc++-dev libprotobuf-dev libabsl-dev
  libssl-dev libpcre2-dev libxxhash-dev libcli11-dev libspdlog-dev nlohmann-json3-dev libboost1.81-dev libgtest-dev libgmock-dev
)
wanted=$(printf '%s\n' "${libraries[@]}")
if [ "$(cat "$root.complete" 2>/dev/null)" = "$wanted" ]; then
  ferry_say "$root is complete"
  exit 0
fi

apt=$root.apt
rm -rf "$root" "$root.complete" "$apt"
mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,parts} "$root"/usr/{bin,lib,sbin}
: >"$apt/status"
cat >"$apt/sources.list" <<SOURCES
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-updates main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security bookworm-security main
SOURCES
as_arm64=(
  apt-get -q -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache"
  -o "Dir::Etc::sourcelist=$apt/sources.list" -o "Dir::Etc::sourceparts=$apt/parts" -o "Dir::Etc::preferencesparts=$apt/parts"
  -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User= -o Debug::NoLocking=1
)
ferry_say "downloading arm64 packages"
"${as_arm64[@]}" update >/dev/null
"${as_arm64[@]}" install -y --no-install-recommends --download-only "${libraries[@]}" >/dev/null

# Debian 12 keeps /lib in /usr/lib. The packages still name both.
for folder in bin lib sbin; do ln -s "usr/$folder" "$root/$folder"; done
for package in "$apt"/cache/archives/*.deb; do dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" --no-same-owner --keep-directory-symlink; done
# Absolute links would lead out of the folder.
find "$root" -type l -lname '/*' -print0 | while IFS= read -r -d '' link; do
  ln -sfn "$(realpath -m --relative-to="$(dirname "$link")" "$root$(readlink "$link")")" "$link"
done
# gRPC's CMake files expect its compiler plugins beside its libraries; these run on this machine.
ln -s /usr/bin/grpc_*_plugin "$root/usr/bin/"
rm -rf "$apt"
echo "$wanted" >"$root.complete"
ferry_say "$root: $(du -sh "$root" | cut -f1)"
