// concat's kernel behind a C function, for test_concat.py.
#include "cuda/concat.cuh"

using namespace fastcnn::cuda;

template <typename Unit>
void run(const ConcatArgs& args, unsigned blocks, unsigned threads, bool wide_index) {
  const dim3 grid{blocks, static_cast<unsigned>(args.count), 1};
  if (wide_index) {
    run_grid(concat_kernel<Unit, int64_t>, grid, threads, args);
  } else {
    run_grid(concat_kernel<Unit, uint32_t>, grid, threads, args);
  }
}

// Returns the bytes a thread moved at a time.
extern "C" int concat(char* output, int64_t rows, int count, const char** inputs, const int64_t* run_bytes,
                      unsigned blocks, unsigned threads, int wide_index) {
  ConcatArgs args{};
  args.output = output;
  args.rows = rows;
  args.count = count;
  for (int i = 0; i < count; ++i) {
    args.inputs[i] = {inputs[i], run_bytes[i], args.row_bytes};
    args.row_bytes += run_bytes[i];
  }
  const int unit = concat_unit_bytes(args);
  switch (unit) {
    case 16:
      run<uint4>(args, blocks, threads, wide_index);
      break;
    case 8:
      run<uint2>(args, blocks, threads, wide_index);
      break;
    case 4:
      run<uint32_t>(args, blocks, threads, wide_index);
      break;
    case 2:
      run<uint16_t>(args, blocks, threads, wide_index);
      break;
    default:
      run<uint8_t>(args, blocks, threads, wide_index);
  }
  return unit;
}
