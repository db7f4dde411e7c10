# One target per folder: every .cpp but the tests becomes library proa_<name>; every *_test.cpp becomes part of the
# program <name>_test, one ctest entry per folder. Adding a file needs no change here.
#   proa_folder(<name> [LINK targets of ours and libraries...] [TEST_LINK what only the tests need...]
#               [EXCLUDE expression of paths to leave out])
find_package(GTest QUIET)
find_package(Threads REQUIRED)

function(proa_folder name)
  cmake_parse_arguments(ARG "" "EXCLUDE" "LINK;TEST_LINK" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cpp)
  if(ARG_EXCLUDE)
    list(FILTER sources EXCLUDE REGEX ${ARG_EXCLUDE})
  endif()
  set(tests ${sources})
  list(FILTER sources EXCLUDE REGEX "_test\\.cpp$")
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")

  if(sources)
    add_library(proa_${name} STATIC ${sources})
    target_include_directories(proa_${name} PUBLIC ${PROJECT_SOURCE_DIR}/src)
    target_link_libraries(proa_${name} PUBLIC ${ARG_LINK} Threads::Threads)
  else()
    add_library(proa_${name} INTERFACE)
    target_include_directories(proa_${name} INTERFACE ${PROJECT_SOURCE_DIR}/src)
    target_link_libraries(proa_${name} INTERFACE ${ARG_LINK} Threads::Threads)
  endif()

  if(tests AND PROA_TESTS)
    add_executable(${name}_test ${tests})
    target_link_libraries(${name}_test PRIVATE proa_${name} ${ARG_TEST_LINK} GTest::gtest GTest::gtest_main)
    target_compile_definitions(${name}_test PRIVATE PROA_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
    add_test(NAME ${name} COMMAND ${name}_test)
  endif()
endfunction()
