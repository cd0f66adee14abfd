/* An engine of a language whose sources are one word and a number:
 *
 *   count          answers with how many requests it has had since it was loaded
 *   grow N         takes N MiB when it is loaded, and answers with what is in them
 *   request        answers with the request
 *   variable       answers with the variable NAME
 *   print          a line on standard output and one on standard error
 *   fail           says why, and fails
 *   trap  loop  flood  nothing
 *
 * With "load" in front, it fails, traps or loops when it is loaded. "bad" answers with what lies
 * outside of the memory.
 */
#include <stdint.h>

#include "worker.h"

#define EXPORT(name) __attribute__((export_name(name)))

static char word[64];
static char file[256];
static unsigned number, requests, filled;
static unsigned char *block;

struct answer {
  const char *text;
  uint32_t size;
};

EXPORT("allocate") void *allocate(uint32_t size) { return malloc(size > 0 ? size : 1); }

EXPORT("canonical_abi_realloc")
void *canonical_abi_realloc(void *old, uint32_t old_size, uint32_t align, uint32_t size) {
  (void)old_size, (void)align;
  return realloc(old, size > 0 ? size : 1);
}

static void misbehave(const char *how) {
  if (strcmp(how, "trap") == 0) abort();
  if (strcmp(how, "loop") == 0)
    for (volatile int forever = 1; forever;) continue;
}

EXPORT("load") int load(char *name, uint32_t name_size, char *source, uint32_t size) {
  snprintf(file, sizeof file, "%.*s", (int)name_size, name);
  char *text = malloc(size + 1);
  memcpy(text, source, size);
  text[size] = '\0';
  if (strncmp(text, "load ", 5) == 0) {
    misbehave(text + 5);
    fprintf(stderr, "%s:1: cannot be loaded\n", file);
    return 1;
  }
  sscanf(text, "%63s %u", word, &number);
  if (strcmp(word, "grow") == 0) {
    filled = number << 20;
    block = malloc(filled);
    memset(block, 'g', filled);
  }
  free(text);
  free(name);
  free(source);
  return 0;
}

static char *respond(const char *text, size_t size) {
  char *response = malloc(2 * size + 128);
  char *at = response + sprintf(response, "{\"data\":\"");
  for (size_t i = 0; i < size; i++) {
    if (text[i] == '"' || text[i] == '\\') *at++ = '\\';
    *at++ = text[i];
  }
  strcpy(at, "\",\"headers\":{\"content-type\":\"text/plain\"},\"status\":200,\"kv\":{}}");
  return response;
}

EXPORT("handle") struct answer *handle(char *request, uint32_t size) {
  static struct answer answer;
  char text[4096] = "";
  size_t length = 0;
  const char *content = text;
  requests++;
  misbehave(word);
  if (strcmp(word, "fail") == 0) {
    fprintf(stderr, "%s:1: no luck today\n", file);
    return NULL;
  }
  if (strcmp(word, "bad") == 0) {
    answer = (struct answer){(const char *)0xfffffff0, 4096};
    return &answer;
  }
  if (strcmp(word, "flood") == 0) {
    answer = (struct answer){text, number << 20};
    return &answer;
  }
  if (strcmp(word, "nothing") == 0) {
    answer = (struct answer){"", 0};
    return &answer;
  }
  if (strcmp(word, "print") == 0) {
    printf("a line for people\n");
    fflush(stdout);
    fprintf(stderr, "a line for the log\n");
  }
  if (strcmp(word, "request") == 0) {
    content = request;
    length = size;
  } else if (strcmp(word, "variable") == 0) {
    const char *value = getenv("NAME");
    length = (size_t)snprintf(text, sizeof text, "%s", value != NULL ? value : "none");
  } else if (strcmp(word, "grow") == 0) {
    unsigned good = 0;
    for (unsigned i = 0; i < filled; i++) good += block[i] == 'g';
    memset(block, 'x', filled);
    length = (size_t)snprintf(text, sizeof text, "%u of %u", good, filled);
  } else {
    length = (size_t)snprintf(text, sizeof text, "%s %u", file, requests);
  }
  const char *response = respond(content, length);
  answer = (struct answer){response, strlen(response)};
  return &answer;
}
