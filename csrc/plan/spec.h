// What a compiled network is made of: values, steps and constants as plain numbers, as fastcnn.compile lowers a model
// and as a file holds them. Nothing in them is trusted: reading checks everything that running relies on.
//
// A value is an activation, NHWC: element (n, h, w, c) lies ((n height + h) width + w) pitch + first_channel + c floats
// after its base. A record of one: [storage, index or offset, height, width, channels, pitch, first_channel]. Height
// and width are both 0 for a tensor [N, channels].
//   storage 0: in the arena of N times so many floats, from N times `offset` on; offsets are multiples of 16
//   storage 1: input `index`, which has strides of its own; its pitch and first channel are 0
//   storage 2: output `index`, of `pitch` channels (or else of the value's); values may be parts of one
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../cpu/kernels/activation_args.h"

namespace fastcnn::plan {

// The most of a height, a width, a kernel's extent, a stride or padding: window tables of as many entries are harmless.
constexpr int64_t kMostSide = int64_t{1} << 20, kMostPadding = kMostSide;
constexpr int64_t kMostChannels = int64_t{1} << 31;
constexpr int64_t kMostFloats = int64_t{1} << 48;  // of an image, with its padding, or the arena

enum class Storage : int8_t { arena, input, output };
using cpu::Activation;
constexpr auto kLastActivation = Activation::silu;

struct Value {
  Storage storage;
  int64_t place;  // arena: offset; else index
  int64_t height, width, channels, pitch, first_channel;
  bool flat;  // a tensor [N, channels]

  int64_t pixels() const { return height * width; }
  int64_t image_size() const { return pixels() * pitch; }  // floats from one image to the next
  std::string shape() const;
  // All the channels of its pixels.
  Value whole() const {
    Value all = *this;
    all.first_channel = 0, all.channels = pitch;
    return all;
  }
};

struct Spec {
  std::vector<Value> values;
  std::vector<at::Tensor> constants;  // float32, contiguous
  int64_t arena;                      // floats an image
  std::vector<int64_t> inputs;        // of each, the value that states its shape
  std::vector<int64_t> outputs;
};
Spec read_spec(const std::vector<std::vector<int64_t>>& values, std::vector<at::Tensor> constants, int64_t arena);

// Whether two values hold a float in common, and whether they are the same floats in the same order.
bool overlap(const Value& a, const Value& b);
bool same_place(const Value& a, const Value& b);

// Which values hold what steps have written.
class Written {
 public:
  void write(const Value& value);
  void forget(const Value& value);
  bool holds(const Value& value) const;

 private:
  struct Channels {
    int64_t begin, end;
  };
  // Channels that are written of pixels that lie together.
  struct Region {
    Value pixels;
    std::vector<Channels> channels;  // sorted, apart
  };
  std::vector<Region> regions_;
};

// Reads the fields of one step's record, in order, and checks them; every message names the step and the numbers.
class StepReader {
 public:
  StepReader(const Spec& spec, const std::vector<int64_t>& record, size_t step, const char* name);

  int64_t number(const char* field, int64_t least, int64_t most);
  int64_t size(const char* field);  // 1 and up
  bool flag(const char* field) { return number(field, 0, 1) != 0; }
  Activation activation() {
    return static_cast<Activation>(number("activation", 0, static_cast<int64_t>(kLastActivation)));
  }
  // Numbers of values; what is read is an input or the arena's, what is written an output or the arena's.
  int64_t read(const char* field);
  int64_t read_or_none(const char* field);
  int64_t write(const char* field);
  // What a step writes instead of `room`, a value whose place it may use meanwhile and which holds nothing afterwards.
  int64_t write_instead_or_none(const char* field, int64_t room);
  // Constants of the sizes that a later check states.
  at::Tensor constant(const char* field);
  at::Tensor constant_or_none(const char* field);
  void done() const;

  void check_sizes(const char* field, const at::Tensor& constant, at::IntArrayRef sizes) const;
  void check_same_shape(int64_t a, int64_t b) const;
  void check_channels(int64_t a, int64_t b) const;
  // The output may be in an input's place only where `in_place` says so, and never on a part of it.
  void check_overlap(int64_t input, int64_t output, bool in_place) const;
  const Value& value(int64_t number) const { return spec_.values[number]; }
  // Fails with the step's name before the message.
  template <typename... Args>
  void check(bool condition, const Args&... args) const {
    TORCH_CHECK(condition, "fastcnn plan: step ", step_, " (", name_, "): ", args...);
  }

  const std::vector<int64_t>& reads() const { return reads_; }
  const std::vector<int64_t>& writes() const { return writes_; }
  const std::vector<int64_t>& rooms() const { return rooms_; }

 private:
  const Spec& spec_;
  const std::vector<int64_t>& record_;
  size_t step_, next_ = 1;  // the first field is the opcode
  const char* name_;
  std::vector<int64_t> reads_, writes_, rooms_;
};

}  // namespace fastcnn::plan
