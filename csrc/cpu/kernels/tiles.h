// From sizes known when running to register tiles of sizes known while compiling. Included once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// Calls work<count>() for a count of 1 to Most, searched downwards from there; nothing for any other.
template <int Most, typename Work>
void with_count(int count, const Work& work) {
  if (count == Most) {
    work.template operator()<Most>();
  } else if constexpr (Most > 1) {
    with_count<Most - 1>(count, work);
  }
}

// Calls work<size>(begin) for tiles of nearly equal size, at most Most, that make up `count`: a last tile of one would
// load as much as a full one.
template <int Most, typename Work>
void over_tiles(int64_t count, const Work& work) {
  const int64_t tiles = (count + Most - 1) / Most;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = count * t / tiles;
    with_count<Most>(static_cast<int>(count * (t + 1) / tiles - begin),
                     [&]<int Size>() { work.template operator()<Size>(begin); });
  }
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
