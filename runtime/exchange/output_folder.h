// A folder for other programs that appears under its name when it is complete, or not at all.
#pragma once

#include <string>

#include "runtime/checkpoint/file_system.h"

namespace flashshard::exchange {

class OutputFolder {
 public:
  /// Makes `path`.tmp-<16 hexadecimal digits>, and the folders above it. Throws Error: kUsage (the
  /// path exists, or may not be written), kOutOfSpace.
  OutputFolder(checkpoint::FileSystem& file_system, const std::string& path);
  /// Removes what was not published.
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  checkpoint::FileSystem& file_system() const { return file_system_; }
  /// Where the files are written until then.
  const std::string& path() const { return temporary_; }
  void write_file(const std::string& name, const std::string& text) const;
  /// Makes the folder durable and gives it its name. Every file in it must be durable already.
  void publish();

 private:
  checkpoint::FileSystem& file_system_;
  std::string final_;
  std::string temporary_;
  bool published_ = false;
};

}  // namespace flashshard::exchange
