# Sourced by the scripts: the Debian packages Ferry builds with, and the one function that installs the missing ones.

ferry_build_packages=(
  g++ cmake ninja-build pkg-config ccache mold
  libgrpc-dev libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler libabsl-dev
  libssl-dev libpcre2-dev libxxhash-dev libcli11-dev libspdlog-dev nlohmann-json3-dev libboost1.81-dev
)
ferry_test_packages=(libgtest-dev libgmock-dev clang libclang-rt-14-dev iproute2 python3-venv chromium)
ferry_aarch64_packages=(g++-aarch64-linux-gnu qemu-user)  # to cross-build for aarch64 and to try that

# ferry_install PACKAGE...: installs those that are missing, with apt-get, as root or through sudo.
ferry_install() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
  done
  if [ ${#missing[@]} -eq 0 ]; then
    ferry_say "all packages are installed"
    return
  fi
  ferry_say "installing ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "error: installing packages needs root, and there is no sudo" >&2; return 1; }
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
}

ferry_say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
