# ferry_precompile(TARGET [headers...]): with FERRY_PRECOMPILE, the compiler reads the headers that nearly every file of TARGET
# includes once. Half of a small file's compile time goes there. The release build reads every header where it is included, so
# that it finds a file which forgot one.
function(ferry_precompile target)
  if(FERRY_PRECOMPILE)
    set(headers <algorithm> <cstdint> <functional> <memory> <optional> <span> <string> <string_view> <utility> <vector>
                <absl/status/statusor.h> <absl/strings/str_cat.h> <absl/strings/str_format.h> <absl/time/clock.h> <absl/time/time.h>)
    target_precompile_headers(${target} PRIVATE ${headers} ${ARGN})
  endif()
endfunction()

# ferry_unity(TARGET): with FERRY_UNITY, the compiler reads eight sources of TARGET as one. Most of the time of a source that uses
# rpc or JSON goes into those headers and what they instantiate, which eight sources then share. A name that is local to such a
# source must therefore be the only one in its target.
function(ferry_unity target)
  if(FERRY_UNITY)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
  endif()
endfunction()

# ferry_precompiled_wire(OUT DEPS...): the headers of rpc or of JSON, if a target with these dependencies uses them.
function(ferry_precompiled_wire out)
  set(${out} "" PARENT_SCOPE)
  if("${ARGN}" MATCHES "ferry_rpc|gRPC::|ferry_coordinator|ferry_worker|ferry_gateway|ferry_cli")
    set(${out} <grpcpp/grpcpp.h> PARENT_SCOPE)
  elseif("${ARGN}" MATCHES "ferry_chat")
    set(${out} <nlohmann/json.hpp> PARENT_SCOPE)
  endif()
endfunction()

# ferry_library(NAME SOURCES ... [DEPS ...]): a static library of this tree; headers are included from its root.
function(ferry_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS} Threads::Threads)
  ferry_precompiled_wire(wire ${ARG_DEPS})
  ferry_precompile(${name} ${wire})
endfunction()

# ferry_tests(GROUP LABEL ... [DEPS ...]): every *_test.cc of the current folder in one binary, a ctest entry per test.
function(ferry_tests group)
  cmake_parse_arguments(ARG "" "TIMEOUT" "LABELS;DEPS;SOURCES" ${ARGN})
  if(NOT ARG_SOURCES)
    file(GLOB_RECURSE ARG_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*_test.cc)
  endif()
  if(NOT ARG_SOURCES)
    return()
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${group}_tests ${ARG_SOURCES})
  target_link_libraries(${group}_tests PRIVATE ${ARG_DEPS} ferry_testing GTest::gmock GTest::gtest_main)
  target_include_directories(${group}_tests PRIVATE ${CMAKE_SOURCE_DIR})
  # A test runs for milliseconds; the optimiser would take longer than it saves.
  target_compile_options(${group}_tests PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O1>)
  if("${FERRY_SANITIZE}" STREQUAL "address+undefined")  # it watches Ferry; in the tests' own code it doubles the compiler's time
    target_compile_options(${group}_tests PRIVATE -fno-sanitize=undefined)
  endif()
  ferry_precompiled_wire(wire ${ARG_DEPS})
  ferry_precompile(${group}_tests ${wire} <gmock/gmock.h> <gtest/gtest.h>)
  gtest_discover_tests(${group}_tests DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT} SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")
endfunction()
