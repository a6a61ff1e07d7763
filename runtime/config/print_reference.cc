// Writes the reference of all settings to the file named, or to stdout: flashshard_config_reference
// docs/configuration.md
#include <fstream>
#include <iostream>

#include "runtime/config/reference.h"

int main(int argc, char** argv) {
  const std::string text = flashshard::configuration_markdown();
  if (argc < 2) {
    std::cout << text;
    return 0;
  }
  std::ofstream file(argv[1], std::ios::binary);
  file << text;
  file.close();
  if (!file) std::cerr << "cannot write " << argv[1] << "\n";
  return file ? 0 : 1;
}
