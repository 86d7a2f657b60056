#include "spec.h"

#include <algorithm>
#include <sstream>

namespace fastcnn::plan {
namespace {

constexpr int64_t kAlignment = 16;  // floats: a cache line
constexpr size_t kValueFields = 7;

template <typename... Args>
std::string text(const Args&... args) {
  std::ostringstream stream;
  (stream << ... << args);
  return stream.str();
}

void check_geometry(const Value& v, const std::string& name, int64_t arena) {
  for (const int64_t side : {v.height, v.width})
    TORCH_CHECK(side >= 1 && side <= kMostSide, name, "expected height and width of 1 to ", kMostSide, ", but got ",
                v.height, " and ", v.width);
  for (const int64_t channels : {v.channels, v.pitch})
    TORCH_CHECK(channels >= 1 && channels <= kMostChannels, name, "expected channels and pitch of 1 to ", kMostChannels,
                ", but got ", v.channels, " and ", v.pitch);
  TORCH_CHECK(v.first_channel >= 0 && v.first_channel <= v.pitch - v.channels, name, "expected channels ",
              v.first_channel, " to ", v.first_channel, " + ", v.channels, " within the pitch of ", v.pitch);
  int64_t size = 0;
  TORCH_CHECK(!__builtin_mul_overflow(v.pixels(), v.pitch, &size) && size <= kMostFloats, name, "expected at most ",
              kMostFloats, " floats an image, but got ", v.height, " x ", v.width, " x ", v.pitch);
  if (v.storage != Storage::arena) return;
  TORCH_CHECK(v.place >= 0 && v.place % kAlignment == 0, name, "expected an offset that is a multiple of ", kAlignment,
              ", but got ", v.place);
  TORCH_CHECK(v.place <= arena - size, name, "expected ", size, " floats from offset ", v.place,
              " on within the arena of ", arena);
}

Value read_value(const std::vector<int64_t>& record, size_t number, int64_t arena) {
  const std::string name = text("fastcnn plan: value ", number, ": ");
  TORCH_CHECK(record.size() == kValueFields, name, "expected ", kValueFields, " numbers, but got ", record.size());
  TORCH_CHECK(record[0] >= 0 && record[0] <= 2, name, "expected storage 0, 1 or 2, but got ", record[0]);
  Value v{static_cast<Storage>(record[0]), record[1], record[2], record[3], record[4], record[5], record[6], false};
  v.flat = v.height == 0 && v.width == 0;
  if (v.flat) v.height = v.width = 1;
  if (v.storage == Storage::input) v.pitch = v.channels, v.first_channel = 0;
  if (v.storage == Storage::output && v.pitch == 0) v.pitch = v.channels;
  check_geometry(v, name, arena);
  return v;
}

// Of each input (output), a value; they are numbered without gaps, and all values of one agree.
std::vector<int64_t> numbered(const std::vector<Value>& values, Storage storage, const char* name) {
  std::vector<int64_t> of;
  const int64_t most = static_cast<int64_t>(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const Value& v = values[i];
    if (v.storage != storage) continue;
    TORCH_CHECK(v.place >= 0 && v.place < most, "fastcnn plan: value ", i, ": expected an index of 0 to ", most - 1,
                " of an ", name, ", but got ", v.place);
    if (v.place >= static_cast<int64_t>(of.size())) of.resize(v.place + 1, -1);
    if (of[v.place] < 0) of[v.place] = static_cast<int64_t>(i);
    const Value& first = values[of[v.place]];
    TORCH_CHECK(first.height == v.height && first.width == v.width && first.pitch == v.pitch && first.flat == v.flat,
                "fastcnn plan: value ", i, ": expected the shape of ", name, " ", v.place, ", ", first.shape(),
                ", but got ", v.shape());
  }
  for (size_t i = 0; i < of.size(); ++i)
    TORCH_CHECK(of[i] >= 0, "fastcnn plan: expected ", of.size(), " ", name, "s, but no value is ", name, " ", i);
  return of;
}

}  // namespace

std::string Value::shape() const {
  return flat ? text("[N, ", pitch, "]") : text("[N, ", pitch, ", ", height, ", ", width, "]");
}

Spec read_spec(const std::vector<std::vector<int64_t>>& values, std::vector<at::Tensor> constants, int64_t arena) {
  TORCH_CHECK(arena >= 0 && arena <= kMostFloats, "fastcnn plan: expected an arena of 0 to ", kMostFloats,
              " floats an image, but got ", arena);
  Spec spec{{}, std::move(constants), arena, {}, {}};
  for (size_t i = 0; i < values.size(); ++i) spec.values.push_back(read_value(values[i], i, arena));
  for (size_t i = 0; i < spec.constants.size(); ++i) {
    at::Tensor& t = spec.constants[i];
    TORCH_CHECK(t.defined() && t.layout() == at::kStrided && t.device().is_cpu() && t.scalar_type() == at::kFloat,
                "fastcnn plan: expected constant ", i, " to be a float32 CPU tensor, but got ",
                t.defined() ? t.toString() : "none");
    t = t.detach().contiguous();
  }
  spec.inputs = numbered(spec.values, Storage::input, "input");
  spec.outputs = numbered(spec.values, Storage::output, "output");
  TORCH_CHECK(!spec.inputs.empty(), "fastcnn plan: expected at least one input, but no value is one");
  return spec;
}

bool same_place(const Value& a, const Value& b) {
  return a.storage == b.storage && a.place == b.place && a.pixels() == b.pixels() && a.pitch == b.pitch &&
         a.first_channel == b.first_channel && a.channels == b.channels;
}

bool overlap(const Value& a, const Value& b) {
  if (a.storage != b.storage) return false;
  if (a.storage != Storage::arena && a.place != b.place) return false;
  const bool same_pixels = a.place == b.place && a.pixels() == b.pixels() && a.pitch == b.pitch;
  if (same_pixels)
    return a.first_channel < b.first_channel + b.channels && b.first_channel < a.first_channel + a.channels;
  return a.place < b.place + b.image_size() && b.place < a.place + a.image_size();
}

void Written::forget(const Value& value) {
  std::erase_if(regions_, [&](const Region& r) { return overlap(r.pixels.whole(), value); });
}

void Written::write(const Value& value) {
  Region* mine = nullptr;
  std::erase_if(regions_, [&](const Region& r) {
    const Value whole = r.pixels.whole();
    const bool same = whole.storage == value.storage && whole.place == value.place &&
                      whole.pixels() == value.pixels() && whole.pitch == value.pitch;
    return !same && overlap(whole, value);
  });
  for (Region& r : regions_)
    if (r.pixels.storage == value.storage && r.pixels.place == value.place && r.pixels.pixels() == value.pixels() &&
        r.pixels.pitch == value.pitch)
      mine = &r;
  if (mine == nullptr) mine = &regions_.emplace_back(Region{value, {}});
  Channels merged{value.first_channel, value.first_channel + value.channels};
  std::erase_if(mine->channels, [&](const Channels& c) {
    if (c.end < merged.begin || merged.end < c.begin) return false;
    merged = {std::min(c.begin, merged.begin), std::max(c.end, merged.end)};
    return true;
  });
  mine->channels.push_back(merged);
}

bool Written::holds(const Value& value) const {
  if (value.storage == Storage::input) return true;
  for (const Region& r : regions_)
    if (r.pixels.storage == value.storage && r.pixels.place == value.place && r.pixels.pixels() == value.pixels() &&
        r.pixels.pitch == value.pitch)
      for (const Channels& c : r.channels)
        if (c.begin <= value.first_channel && value.first_channel + value.channels <= c.end) return true;
  return false;
}

StepReader::StepReader(const Spec& spec, const std::vector<int64_t>& record, size_t step, const char* name)
    : spec_(spec), record_(record), step_(step), name_(name) {}

int64_t StepReader::number(const char* field, int64_t least, int64_t most) {
  check(next_ < record_.size(), "expected ", field, " as number ", next_, ", but got a record of ", record_.size(),
        " numbers");
  const int64_t number = record_[next_++];
  check(number >= least && number <= most, "expected ", field, " of ", least, " to ", most, ", but got ", number);
  return number;
}
int64_t StepReader::size(const char* field) { return number(field, 1, kMostSide); }

int64_t StepReader::read(const char* field) {
  const int64_t v = number(field, 0, static_cast<int64_t>(spec_.values.size()) - 1);
  reads_.push_back(v);
  return v;
}
int64_t StepReader::read_or_none(const char* field) {
  const int64_t v = number(field, -1, static_cast<int64_t>(spec_.values.size()) - 1);
  if (v >= 0) reads_.push_back(v);
  return v;
}
int64_t StepReader::write(const char* field) {
  const int64_t v = number(field, 0, static_cast<int64_t>(spec_.values.size()) - 1);
  check(value(v).storage != Storage::input, "expected ", field, " to be no input, but got value ", v, ", input ",
        value(v).place);
  writes_.push_back(v);
  return v;
}

int64_t StepReader::write_instead_or_none(const char* field, int64_t room) {
  const int64_t v = number(field, -1, static_cast<int64_t>(spec_.values.size()) - 1);
  if (v < 0) return v;
  check(value(v).storage != Storage::input && value(room).storage == Storage::arena, "expected ", field,
        " to be no input, and value ", room, " before it the arena's, but got value ", v);
  check_overlap(room, v, false);
  std::erase(writes_, room);
  writes_.push_back(v), rooms_.push_back(room);
  return v;
}

at::Tensor StepReader::constant(const char* field) {
  return spec_.constants[number(field, 0, static_cast<int64_t>(spec_.constants.size()) - 1)];
}
at::Tensor StepReader::constant_or_none(const char* field) {
  const int64_t c = number(field, -1, static_cast<int64_t>(spec_.constants.size()) - 1);
  return c < 0 ? at::Tensor() : spec_.constants[c];
}

void StepReader::done() const {
  check(next_ == record_.size(), "expected a record of ", next_, " numbers, but got ", record_.size());
}

void StepReader::check_sizes(const char* field, const at::Tensor& constant, at::IntArrayRef sizes) const {
  check(!constant.defined() || constant.sizes() == sizes, "expected ", field, " of size ", sizes, ", but got ",
        constant.defined() ? constant.sizes() : sizes);
}
void StepReader::check_channels(int64_t a, int64_t b) const {
  check(value(a).channels == value(b).channels, "expected values ", a, " and ", b, " of as many channels, but got ",
        value(a).channels, " and ", value(b).channels);
}
void StepReader::check_same_shape(int64_t a, int64_t b) const {
  check_channels(a, b);
  check(value(a).height == value(b).height && value(a).width == value(b).width, "expected values ", a, " and ", b,
        " of the same height and width, but got ", value(a).height, " x ", value(a).width, " and ", value(b).height,
        " x ", value(b).width);
}
void StepReader::check_overlap(int64_t input, int64_t output, bool in_place) const {
  const bool allowed = in_place && same_place(value(input), value(output));
  check(allowed || !overlap(value(input), value(output)), "expected value ", output, " to be written beside value ",
        input, ", but they overlap: offsets ", value(output).place, " and ", value(input).place);
}

}  // namespace fastcnn::plan
