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
            {0.008345, 0.01537, 0.02181, 0.1442, 0.2338},  // direct, median error 10 %
            {0.005067, 0.02167, 0.1561, 0.4022, 0.1864},  // winograd_f4x3, median error 12 %
            {0.006458, 0.01624, 0.1141, 0.2696, 0.2412},  // winograd_f2x3, median error 12 %
            {0.02033, 0.01829, 0.1388, 0.235, 0.3777},  // winograd_f2x5, median error 10 %
            {0.03254, 0.01612, 0.07235, 0.2612, 0.1325},  // aten, median error 13 %
        },
        {  // grad_input
            {0, 0, 0, 0, 0},  // automatic
            {0.003152, 0.01549, 0.2442, 0.06838, 0.2548},  // direct, median error 11 %
            {0.004983, 0.02061, 0.3014, 0.2973, 0.1994},  // winograd_f4x3, median error 13 %
            {0.01042, 0.01623, 0.1352, 0.2025, 0.2301},  // winograd_f2x3, median error 9 %
            {0.02233, 0.0187, 0.1314, 0.1839, 0.3925},  // winograd_f2x5, median error 11 %
            {0.03713, 0.01588, 0.3774, 0.0946, 0.119},  // aten, median error 13 %
        },
        {  // grad_weight
            {0, 0, 0, 0, 0},  // automatic
            {0.00762, 0.01593, 0.02935, 0.3353, 0.1852},  // direct, median error 11 %
            {0.001589, 0.023, 0.288, 0.3201, 0.3025},  // winograd_f4x3, median error 16 %
            {0.003058, 0.01715, 0.2654, 0.2511, 0.3382},  // winograd_f2x3, median error 11 %
            {0.023, 0.01986, 0.1999, 0.2587, 0.3296},  // winograd_f2x5, median error 10 %
            {0.03234, 0.01848, 0.2022, 0.2051, 0.161},  // aten, median error 17 %
        },
    },
};
// clang-format on

}  // namespace fastcnn::cpu
