# cmake -DMPIRUN=... -DRANKS=N -DPROGRAM=... -DSCENARIO=... -DEXPECTED_CODE=N -DEXPECTED_ERROR=regex -P expect_mpirun.cmake
# Runs a scenario of mpi_faults; fails unless mpirun ends by itself with the expected code and the expected words on stderr.
execute_process(
  COMMAND ${MPIRUN} -n ${RANKS} --oversubscribe --allow-run-as-root ${PROGRAM} ${SCENARIO}
  RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE error TIMEOUT 25)
if(NOT code STREQUAL EXPECTED_CODE)
  message(FATAL_ERROR "mpirun ended with '${code}' instead of ${EXPECTED_CODE}\n${output}${error}")
endif()
if(NOT error MATCHES "${EXPECTED_ERROR}")
  message(FATAL_ERROR "stderr lacks '${EXPECTED_ERROR}':\n${error}")
endif()
