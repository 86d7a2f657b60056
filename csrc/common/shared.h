// Marks the few functions of libfastcnn.so that libfastcnn_cuda.so calls; all others are hidden.
#pragma once

#define FASTCNN_SHARED __attribute__((visibility("default")))
