/* Runs an export without Python, Keras or tfdet, by TensorFlow's C API, and prints what it finds in the given images.

   serving_client SAVED_MODEL INPUT BOXES SCORES LABELS NUM_DETECTIONS IMAGE...

   The five names are those of the graph's tensors, "operation:index", as `saved_model_cli show --all` lists them for
   the signature serving_default. The images go in as one batch. A line each: for an image "image NUM_DETECTIONS", for
   its detections "LABEL SCORE X1 Y1 X2 Y2". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

enum { BOXES, SCORES, LABELS, NUM_DETECTIONS, OUTPUTS };

static void check(int good, const char *what) {
  if (good) return;
  fprintf(stderr, "serving_client: %s\n", what);
  exit(1);
}

static TF_Output tensor_named(TF_Graph *graph, char *name) {
  char *colon = strrchr(name, ':');
  check(colon != NULL, "a tensor's name is operation:index");
  *colon = '\0';
  TF_Output output = {TF_GraphOperationByName(graph, name), atoi(colon + 1)};
  check(output.oper != NULL, name);
  return output;
}

static void read_file(const char *path, TF_TString *content) {
  FILE *file = fopen(path, "rb");
  check(file != NULL && fseek(file, 0, SEEK_END) == 0, path);
  size_t size = ftell(file);
  rewind(file);
  TF_TString_Init(content);
  check(fread(TF_TString_ResizeUninitialized(content, size), 1, size, file) == size, path);
  fclose(file);
}

int main(int argc, char **argv) {
  check(argc > 7, "SAVED_MODEL INPUT BOXES SCORES LABELS NUM_DETECTIONS IMAGE...");
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  const char *tag = "serve";
  TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], &tag, 1, graph, NULL, status);
  check(TF_GetCode(status) == TF_OK, TF_Message(status));
  TF_Output input = tensor_named(graph, argv[2]), outputs[OUTPUTS];
  for (int i = 0; i < OUTPUTS; i++) outputs[i] = tensor_named(graph, argv[3 + i]);

  int64_t count = argc - 7;
  TF_Tensor *batch = TF_AllocateTensor(TF_STRING, &count, 1, count * sizeof(TF_TString)), *found[OUTPUTS];
  for (int i = 0; i < count; i++) read_file(argv[7 + i], (TF_TString *)TF_TensorData(batch) + i);
  TF_SessionRun(session, NULL, &input, &batch, 1, outputs, found, OUTPUTS, NULL, 0, NULL, status);
  check(TF_GetCode(status) == TF_OK, TF_Message(status));

  const float *boxes = TF_TensorData(found[BOXES]), *scores = TF_TensorData(found[SCORES]);
  const int32_t *labels = TF_TensorData(found[LABELS]), *numbers = TF_TensorData(found[NUM_DETECTIONS]);
  int64_t kept = TF_Dim(found[SCORES], 1);
  for (int64_t i = 0; i < count; i++) {
    printf("image %d\n", numbers[i]);
    for (int64_t k = i * kept; k < i * kept + numbers[i]; k++)
      printf("%d %.9g %.9g %.9g %.9g %.9g\n", labels[k], scores[k], boxes[4 * k], boxes[4 * k + 1], boxes[4 * k + 2],
             boxes[4 * k + 3]);
  }
  return 0; /* the process ends, and with it all that it allocated */
}
