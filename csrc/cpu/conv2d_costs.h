// Milliseconds a count (conv2d_choice.h), fitted by benchmarks/conv2d_rule.py to the geometric mean of 1
// and 2 threads. Measured on:
//   AVX2 and baseline: AMD EPYC, avx2 kernels, torch 2.13.0+cpu
//   AVX-512: AMD EPYC, avx512 kernels, torch 2.13.0+cpu
#pragma once

namespace fastcnn::cpu {

// [AVX-512 or not][pass][algorithm][count]
// clang-format off
constexpr double kConv2dCosts[2][3][6][5] = {
    {
        {  // forward
            {0, 0, 0, 0, 0},  // automatic
            {0.007456, 0.01691, 0.03533, 0.2824, 0.1839},  // direct, median error 9 %
            {0.007378, 0.01972, 0.198, 0.5996, 0.185},  // winograd_f4x3, median error 11 %
            {0.006639, 0.01542, 0.1368, 0.5718, 0.246},  // winograd_f2x3, median error 10 %
            {0.01546, 0.02288, 0.7515, 0.05995, 0.2657},  // winograd_f2x5, median error 9 %
            {0.01695, 0.01705, 0.1712, 0.5291, 0.2559},  // aten, median error 11 %
        },
        {  // grad_input
            {0, 0, 0, 0, 0},  // automatic
            {0.004953, 0.01705, 0.2493, 0.1444, 0.3081},  // direct, median error 8 %
            {0.008077, 0.02537, 0.02883, 0.4234, 0.1888},  // winograd_f4x3, median error 11 %
            {0.004139, 0.02085, 0, 0.3122, 0.2634},  // winograd_f2x3, median error 8 %
            {0.01874, 0.02007, 0.1716, 0.4475, 0.4064},  // winograd_f2x5, median error 8 %
            {0.02964, 0.01829, 0.3705, 0.04991, 0.2133},  // aten, median error 10 %
        },
        {  // grad_weight
            {0, 0, 0, 0, 0},  // automatic
            {0.009747, 0.02195, 0.09871, 0.3708, 0.1866},  // direct, median error 10 %
            {0, 0.0293, 0.3302, 0.223, 0.4719},  // winograd_f4x3, median error 15 %
            {0.00458, 0.02305, 0.2891, 0.1846, 0.5809},  // winograd_f2x3, median error 13 %
            {0.02021, 0.02934, 0, 0.7766, 0.5585},  // winograd_f2x5, median error 7 %
            {0.03335, 0.02343, 0.07928, 0.003397, 0.01198},  // aten, median error 13 %
        },
    },
    {
        {  // forward
            {0, 0, 0, 0, 0},  // automatic
            {0.01444, 0.01629, 0.01766, 0.09178, 0.1753},  // direct, median error 13 %
            {0.01103, 0.02362, 0.1497, 0.3279, 0.193},  // winograd_f4x3, median error 14 %
            {0.01368, 0.01729, 0.1277, 0.1919, 0.2296},  // winograd_f2x3, median error 12 %
            {0.005876, 0.01752, 0.2202, 0.2351, 0.3557},  // winograd_f2x5, median error 14 %
            {0.03568, 0.0166, 0.08811, 0.3565, 0.08628},  // aten, median error 15 %
        },
        {  // grad_input
            {0, 0, 0, 0, 0},  // automatic
            {0.003931, 0.01641, 0.2128, 0.03995, 0.2463},  // direct, median error 14 %
            {0.01272, 0.02341, 0.1933, 0.2833, 0.1756},  // winograd_f4x3, median error 15 %
            {0.01448, 0.01648, 0.1169, 0.2004, 0.2228},  // winograd_f2x3, median error 11 %
            {0.001967, 0.01767, 0.3029, 0.1985, 0.4376},  // winograd_f2x5, median error 11 %
            {0.03719, 0.01631, 0.4016, 0.1505, 0.1371},  // aten, median error 14 %
        },
        {  // grad_weight
            {0, 0, 0, 0, 0},  // automatic
            {0.009384, 0.0164, 0.02472, 0.1249, 0.2056},  // direct, median error 12 %
            {0.001178, 0.02036, 0.3098, 0.3956, 0.2937},  // winograd_f4x3, median error 15 %
            {0.005251, 0.01742, 0.2904, 0.2683, 0.2628},  // winograd_f2x3, median error 13 %
            {0.008322, 0.02188, 0.3015, 0.315, 0.2159},  // winograd_f2x5, median error 21 %
            {0.03455, 0.01898, 0.2323, 0.1697, 0.2147},  // aten, median error 17 %
        },
    },
};
// clang-format on

}  // namespace fastcnn::cpu
