# flashshard_room(<room> SOURCES ... [PUBLIC libs...] [PRIVATE libs...]): one static library per room of the architecture.
# Inside the repository headers are included from its root: "kernels/backend.h".
function(flashshard_room room)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(flashshard_${room} STATIC ${ARG_SOURCES})
  add_library(flashshard::${room} ALIAS flashshard_${room})
  set_target_properties(flashshard_${room} PROPERTIES EXPORT_NAME ${room})
  target_include_directories(flashshard_${room} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<INSTALL_INTERFACE:include/flashshard>)
  target_link_libraries(flashshard_${room} PUBLIC ${ARG_PUBLIC} PRIVATE flashshard_options ${ARG_PRIVATE})
endfunction()

# flashshard_optimize(<target> RELEASE <level> [DEBUG <level>]): another -O level than the build type's. Only kernels/ has loops whose
# speed is felt; elsewhere -O3 buys nothing and takes a third of the compile time.
function(flashshard_optimize target)
  cmake_parse_arguments(ARG "" "RELEASE;DEBUG" "" ${ARGN})
  if(ARG_RELEASE)
    target_compile_options(${target} PRIVATE $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release,RelWithDebInfo>>:-O${ARG_RELEASE}>)
  endif()
  if(ARG_DEBUG)
    target_compile_options(${target} PRIVATE $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Debug>>:-O${ARG_DEBUG}>)
  endif()
endfunction()

# flashshard_test(<name> SOURCES ... LIBS ... [LABELS ...] [ENVIRONMENT ...]): one GoogleTest program, its cases listed in ctest.
function(flashshard_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LIBS;LABELS;ENVIRONMENT" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_link_libraries(${name} PRIVATE flashshard_options ${ARG_LIBS} GTest::gmock GTest::gtest_main)
  flashshard_optimize(${name} RELEASE 1)
  if(FLASHSHARD_SANITIZE)
    # The rooms are what is looked at: half a test's compile time would go into checks of the test's own code.
    target_compile_options(${name} PRIVATE -fno-sanitize=undefined)
  endif()
  target_compile_definitions(${name} PRIVATE FLASHSHARD_TEST_DATA="${PROJECT_SOURCE_DIR}/tests")
  set(properties TIMEOUT ${ARG_TIMEOUT})
  if(ARG_LABELS)
    list(APPEND properties LABELS "${ARG_LABELS}")
  endif()
  if(ARG_ENVIRONMENT)
    list(APPEND properties ENVIRONMENT "${ARG_ENVIRONMENT}")
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES ${properties})
endfunction()
