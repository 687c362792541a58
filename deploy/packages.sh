# shellcheck shell=bash disable=SC1091,SC2034
# Sourced by the scripts: the packages that Ferry builds with, by distribution, and the one function that installs the missing ones.

# "debian 12"
ferry_distribution=$(. /etc/os-release 2>/dev/null || true; echo "${ID:-unknown} ${VERSION_ID:-}")

# ferry_packages_of DISTRIBUTION: the packages of a build there, one a line; fails for a distribution that nobody has listed.
# Built and tested is "debian 12"; the lists of the others are by their package indexes.
ferry_packages_of() {
  local common=(g++ cmake ninja-build pkg-config libgrpc-dev 'libgrpc++-dev' protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
    libabsl-dev libssl-dev libpcre2-dev libxxhash-dev libcli11-dev libspdlog-dev nlohmann-json3-dev)
  case $1 in
    "debian 12"*) printf '%s\n' "${common[@]}" libboost1.81-dev ;;
    "debian 13"* | "ubuntu 24.04"*) printf '%s\n' "${common[@]}" libboost1.83-dev ;;
    "ubuntu 22.04"*) # Its Boost (1.74) and CMake (3.22) are too old: ferry_too_old says so.
      printf '%s\n' "${common[@]}" libboost1.74-dev ;;
    "fedora "*)
      printf '%s\n' gcc-c++ cmake ninja-build pkgconf-pkg-config grpc-devel grpc-plugins protobuf-devel protobuf-compiler \
        abseil-cpp-devel openssl-devel pcre2-devel xxhash-devel cli11-devel spdlog-devel json-devel boost-devel ;;
    *) return 1 ;;
  esac
}

# What a distribution has in too old a version, for people; nothing where all is new enough.
ferry_too_old() {
  case $1 in
    "ubuntu 22.04"*) echo "CMake 3.22 (3.25 is needed: pip install cmake) and Boost 1.74 (the headers of 1.81 are needed)" ;;
  esac
}

mapfile -t ferry_build_packages < <(ferry_packages_of "$ferry_distribution" || ferry_packages_of "debian 12")
ferry_developer_packages=(ccache mold)  # builds are quicker with them
ferry_test_packages=(libgtest-dev libgmock-dev clang libclang-rt-14-dev iproute2 python3-venv chromium)
ferry_aarch64_packages=(g++-aarch64-linux-gnu qemu-user)  # to cross-build for aarch64 and to try that

# ferry_install PACKAGE...: installs those that are missing, with apt-get, as root or through sudo. Elsewhere it says what to
# install, and goes on where a compiler and CMake are there, since that is then done.
ferry_install() {
  local missing=() package old
  old=$(ferry_too_old "$ferry_distribution")
  [ -z "$old" ] || ferry_say "$ferry_distribution has $old"
  if ! command -v apt-get >/dev/null || ! ferry_packages_of "$ferry_distribution" >/dev/null; then
    ferry_say "this is $ferry_distribution: install these, or what its packages of them are called"
    printf '  %s\n' "$*" >&2
    if command -v c++ >/dev/null && command -v cmake >/dev/null && command -v ninja >/dev/null; then return; fi
    echo "error: c++, cmake or ninja is missing" >&2
    return 1
  fi
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
  done
  if [ ${#missing[@]} -eq 0 ]; then
    ferry_say "all packages are installed"
    return
  fi
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "error: an administrator has to install: apt-get install ${missing[*]}" >&2
      return 1
    fi
    as_root=(sudo)
  fi
  ferry_say "installing ${missing[*]}"
  "${as_root[@]}" apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
}

# Which CUDA a build will use, and what the machine's GPUs need. The compiler's version decides which GPUs it compiles for.
ferry_cuda() {
  local nvcc version capabilities capability needed
  nvcc=$(command -v nvcc || ls "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" 2>/dev/null || true)
  capabilities=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u || true)
  if [ -z "$nvcc" ]; then
    [ -z "$capabilities" ] || ferry_say "there are GPUs and no nvcc: this build is for processors alone; CUDA 12.0 or newer adds GPUs"
    return 0
  fi
  version=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
  ferry_say "CUDA $version at $nvcc"
  for capability in $capabilities; do
    needed=$(ferry_cuda_for "$capability")
    if [ "$(printf '%s\n' "$needed" "$version" | sort -V | head -1)" != "$needed" ]; then
      ferry_say "a GPU of compute capability $capability needs CUDA $needed, this is $version"
    fi
  done
}

# The first CUDA whose compiler knows a compute capability, of those that build Ferry.
ferry_cuda_for() {
  case $1 in
    10.0) echo 12.8 ;;
    10.* | 12.* | 11.*) echo 12.9 ;;
    *) echo 12.0 ;;
  esac
}

ferry_say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
