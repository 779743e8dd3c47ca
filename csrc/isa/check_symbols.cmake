# Fails when an object of csrc/isa exports a function that the linker may merge with another file's copy: one compiled
# with wide instructions could end up in the path of every machine. cmake -DNM=... -DOBJECTS=... -P check_symbols.cmake
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9a-f ]+ [WVu] [^\n]+" weak "${symbols}")
  if(weak)
    message(FATAL_ERROR "${object} has weak symbols: ${weak}")
  endif()
endforeach()
