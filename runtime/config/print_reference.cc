// Writes the reference of all settings to the file named, or to stdout, and the tables of what can
// be combined into a second one: flashshard_config_reference docs/configuration.md docs/sharding.md
#include <fstream>
#include <iostream>

#include <sstream>

#include "runtime/config/reference.h"

namespace {

bool write(const char* path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) std::cerr << "cannot write " << path << "\n";
  return static_cast<bool>(file);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string text = flashshard::configuration_markdown();
  if (argc < 2) {
    std::cout << text;
    return 0;
  }
  if (!write(argv[1], text)) return 1;
  if (argc < 3) return 0;
  std::stringstream page;
  page << std::ifstream(argv[2], std::ios::binary).rdbuf();
  return write(argv[2], flashshard::with_legality_tables(page.str())) ? 0 : 1;
}
