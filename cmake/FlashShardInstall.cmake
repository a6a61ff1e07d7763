# cmake --install, and a package that find_package(flashshard) finds.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS flashshard RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
# Programs that the binary starts and nobody else.
install(TARGETS flashshard-sentencepiece RUNTIME DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/flashshard)
install(PROGRAMS ${PROJECT_SOURCE_DIR}/runtime/data/tokenizers/hugging_face_tokenizer.py
        DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/flashshard)
install(TARGETS flashshard_options flashshard_proto flashshard_kernels flashshard_comm flashshard_optim flashshard_runtime
                flashshard_codec
        EXPORT flashshard_targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
foreach(room kernels comm optim runtime)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${room} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/flashshard FILES_MATCHING PATTERN "*.h")
endforeach()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/proto DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/flashshard FILES_MATCHING PATTERN "*.proto")
install(DIRECTORY ${PROJECT_BINARY_DIR}/proto DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/flashshard FILES_MATCHING PATTERN "*.pb.h")
install(EXPORT flashshard_targets NAMESPACE flashshard:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/flashshard)
# The package finds again what the libraries were linked with.
set(FLASHSHARD_HAVE_ONEDNN OFF)
get_target_property(definitions flashshard_kernels COMPILE_DEFINITIONS)
if("FLASHSHARD_HAVE_ONEDNN" IN_LIST definitions)
  set(FLASHSHARD_HAVE_ONEDNN ON)
endif()
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/flashshardConfig.cmake.in
  ${PROJECT_BINARY_DIR}/flashshardConfig.cmake INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/flashshard)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/flashshardConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/flashshardConfig.cmake ${PROJECT_BINARY_DIR}/flashshardConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/flashshard)
