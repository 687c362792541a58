# Cross-builds for Linux on aarch64 with Debian's g++-aarch64-linux-gnu, against the libraries that deploy/aarch64-sysroot.sh unpacks.
# Tests run under qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)

set(FERRY_SYSROOT "${CMAKE_CURRENT_LIST_DIR}/../build/aarch64-sysroot" CACHE PATH
    "Libraries of the target, as deploy/aarch64-sysroot.sh unpacks them")
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES FERRY_SYSROOT)
get_filename_component(CMAKE_SYSROOT "${FERRY_SYSROOT}" ABSOLUTE)
if(NOT EXISTS "${CMAKE_SYSROOT}.complete")
  message(FATAL_ERROR "${CMAKE_SYSROOT} holds no complete sysroot: run deploy/aarch64-sysroot.sh")
endif()
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)  # protoc and the plugin of gRPC run here
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${CMAKE_SYSROOT}")
set(ENV{PKG_CONFIG_LIBDIR} "${CMAKE_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${CMAKE_SYSROOT}/usr/share/pkgconfig")
set(CMAKE_CROSSCOMPILING_EMULATOR "qemu-aarch64;-L;${CMAKE_SYSROOT}")
