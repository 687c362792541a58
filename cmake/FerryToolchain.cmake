# Compilers, flags and sanitizers: everything that holds for every target.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wno-unused-parameter;-Wno-missing-field-initializers>")
# Floating point follows the source: a fused multiply-add is written where it is wanted, so that the same row gives the
# same bits in every kernel that computes it.
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>")

if("${FERRY_SANITIZE}" STREQUAL "address+undefined")
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined;-fno-sanitize-recover=undefined;-fno-omit-frame-pointer>")
  add_link_options(-fsanitize=address,undefined)
elseif("${FERRY_SANITIZE}" STREQUAL "thread")
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=thread;-fno-omit-frame-pointer;-Wno-tsan>")
  add_link_options(-fsanitize=thread)
elseif("${FERRY_SANITIZE}" STREQUAL "fuzz")  # coverage counters for libFuzzer everywhere; its main only in the fuzzers
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link,address,undefined;-fno-sanitize-recover=undefined>")
  add_link_options(-fsanitize=address,undefined)
elseif(NOT "${FERRY_SANITIZE}" STREQUAL "")
  message(FATAL_ERROR "FERRY_SANITIZE is '${FERRY_SANITIZE}'; want empty, address+undefined, thread or fuzz")
endif()

find_program(FERRY_CCACHE ccache)
if(FERRY_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${FERRY_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${FERRY_CCACHE})
endif()
find_program(FERRY_MOLD mold)
if(FERRY_MOLD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT CMAKE_CROSSCOMPILING)
  add_link_options(-fuse-ld=mold)
endif()

# A program finds its shared libraries in ../lib beside itself, and they each other through it: RPATH, not RUNPATH, which would
# not reach the libraries of libraries. In a build folder ../lib does not exist and the system's serve.
set(CMAKE_BUILD_RPATH "$ORIGIN/../lib")
add_link_options(-Wl,--disable-new-dtags)

# CUDA: the language is enabled only where the compiler is, so that the CPU build needs nothing of it.
set(FERRY_HAVE_CUDA FALSE)
if(NOT FERRY_CUDA STREQUAL "OFF")
  find_program(FERRY_NVCC nvcc HINTS /usr/local/cuda/bin ENV CUDA_HOME PATH_SUFFIXES bin)
  if(FERRY_NVCC)
    set(CMAKE_CUDA_COMPILER ${FERRY_NVCC})
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      # A quick build compiles for the GPUs of this machine, or for Hopper where there is none; the release list is in
      # CMakePresets.json. 9.0 becomes 90a, which has the warpgroup products.
      set(CMAKE_CUDA_ARCHITECTURES 90a)
      execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
        OUTPUT_VARIABLE capabilities RESULT_VARIABLE failed ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
      if(failed EQUAL 0 AND capabilities MATCHES "^[0-9]+\\.[0-9]+")
        string(REPLACE "." "" capabilities "${capabilities}")
        string(REPLACE "\n" ";" capabilities "${capabilities}")
        list(REMOVE_DUPLICATES capabilities)
        list(TRANSFORM capabilities REPLACE "^90$" "90a")
        set(CMAKE_CUDA_ARCHITECTURES ${capabilities})
      endif()
    endif()
    enable_language(CUDA)
    # CMake 3.25 does not know nvcc's spelling of C++20.
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    find_package(CUDAToolkit REQUIRED)
    set(FERRY_HAVE_CUDA TRUE)
  elseif(FERRY_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FERRY_CUDA=ON, but nvcc was not found: put it on PATH or set CUDA_HOME")
  endif()
endif()
message(STATUS "Ferry: CUDA backend ${FERRY_HAVE_CUDA}, build type ${CMAKE_BUILD_TYPE}, sanitizers '${FERRY_SANITIZE}'")
