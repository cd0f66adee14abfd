/* Asks a model: /v1.5/infer and /v2/infer with the request's body as the prompt, /.../embed with its
 * lines as texts. x-model names the model; x-params, if it is there, has the six parameters. */
#include "host.h"

#define INFER_ARGUMENTS                                                                        \
  const char *model, size_t model_size, const char *prompt, size_t prompt_size, int has_params, \
      uint32_t max_tokens, float repeat_penalty, uint32_t last_n, float temperature,           \
      uint32_t top_k, float top_p, union host_result *result
#define EMBED_ARGUMENTS                                                                  \
  const char *model, size_t model_size, const struct spin_string *texts, size_t count, \
      union host_result *result

HOST_IMPORT("fermyon:spin/llm", "infer") void infer_1_5(INFER_ARGUMENTS);
HOST_IMPORT("fermyon:spin/llm@2.0.0", "infer") void infer_2(INFER_ARGUMENTS);
HOST_IMPORT("fermyon:spin/llm", "generate-embeddings") void embed_1_5(EMBED_ARGUMENTS);
HOST_IMPORT("fermyon:spin/llm@2.0.0", "generate-embeddings") void embed_2(EMBED_ARGUMENTS);

SPIN_EXPORT("cabi_realloc")
void *cabi_realloc(void *old, size_t old_size, size_t align, size_t new_size) {
  return spin_realloc(old, old_size, align, new_size);
}

static void infer(const struct spin_request *request, struct spin_response *response, bool newer,
                  const char *model) {
  uint32_t max_tokens = 0, last_n = 0, top_k = 0;
  float repeat_penalty = 0, temperature = 0, top_p = 0;
  const char *params = spin_request_header(request, "x-params");
  if (params != NULL)
    sscanf(params, "%u %f %u %f %u %f", &max_tokens, &repeat_penalty, &last_n, &temperature, &top_k,
           &top_p);
  union host_result result;
  (newer ? infer_2 : infer_1_5)(model, strlen(model), request->body.data, request->body.size,
                                params != NULL, max_tokens, repeat_penalty, last_n, temperature,
                                top_k, top_p, &result);
  /* ok: text at 4, counts at 12 and 16; error: its case at 4, a string at 8 */
  if (result.bytes[0] == 0) {
    struct spin_string text = host_string(result.bytes + 4);
    host_say(response, "ok %u %u %.*s", host_u32(result.bytes + 12), host_u32(result.bytes + 16),
             HOST_TEXT(text));
  } else if (result.bytes[4] == 0) {
    host_say(response, "error 0");
  } else {
    struct spin_string reason = host_string(result.bytes + 8);
    host_say(response, "error %d %.*s", result.bytes[4], HOST_TEXT(reason));
  }
}

static void embed(const struct spin_request *request, struct spin_response *response, bool newer,
                  const char *model) {
  struct spin_string texts[64];
  size_t count = 0;
  for (char *line = strtok(request->body.data, "\n"); line != NULL && count < 64;
       line = strtok(NULL, "\n"))
    texts[count++] = (struct spin_string){line, strlen(line)};
  union host_result result;
  (newer ? embed_2 : embed_1_5)(model, strlen(model), texts, count, &result);
  /* ok: vectors at 4, count at 12; error: its case at 4, a string at 8 */
  if (result.bytes[0] != 0) {
    host_say(response, "error %d", result.bytes[4]);
    return;
  }
  host_say(response, "ok %u", host_u32(result.bytes + 12));
  struct spin_string vectors = host_string(result.bytes + 4);
  for (size_t i = 0; i < vectors.size; i++) {
    struct spin_string vector = host_string(vectors.data + 8 * i);
    host_say(response, " [");
    for (size_t j = 0; j < vector.size; j++)
      host_say(response, " %g", (double)((float *)vector.data)[j]);
    host_say(response, " ]");
  }
}

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  const char *model = spin_request_header(request, "x-model");
  if (model == NULL) model = "";
  bool newer = strncmp(request->uri.data, "/v2", 3) == 0;
  (strstr(request->uri.data, "embed") != NULL ? embed : infer)(request, response, newer, model);
}
