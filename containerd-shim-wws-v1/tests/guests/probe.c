/* A worker that does what the query of its URL says: mode=M, and for some modes more fields.
 *
 *   request            answers with the request, as it came (the default)
 *   output             prints the request's body, which is to be a response, and nothing else
 *   environment        arguments and variables, a line each
 *   kv&key=K&value=V   answers with the store's values, and adds one; &code=N: then exits with N
 *   clear              empties the store
 *   read&path=P        answers with a file; write&path=P writes "written" to it
 *   stderr             a line on standard error
 *   exit&code=N        a good response, then exit code N
 *   sleep&ms=N         waits in poll_oneoff before a good response
 *   big&bytes=N        a body of N bytes
 *   trap  loop  flood  nothing
 */
#include <errno.h>
#include <time.h>

#include "worker.h"

extern char **environ;

static char url[4096];

/* The value of one field of the query as it stands, "" if it is not there. */
static const char *field(const char *name) {
  static char copies[4][512];
  static int next;
  char *copy = copies[next++ % 4];
  const char *query = strchr(url, '?');
  size_t size = strlen(name);
  snprintf(copy, 512, "%s", query != NULL ? query + 1 : "");
  for (char *part = strtok(copy, "&"); part != NULL; part = strtok(NULL, "&"))
    if (strncmp(part, name, size) == 0 && part[size] == '=') return part + size + 1;
  return "";
}

static void respond(const char *text, size_t size) {
  printf("{\"data\":\"");
  worker_put(text, size);
  printf("\",\"headers\":{\"content-type\":\"text/plain\"},\"status\":200,\"kv\":{}}");
}

static void respond_text(const char *text) { respond(text, strlen(text)); }

static void add_to_store(const char *request) {
  const char *store = worker_member(request, "kv");
  size_t size = (size_t)(worker_skip(store) - store);
  printf("{\"data\":\"");
  worker_put(store, size);
  printf("\",\"headers\":{},\"status\":200,\"kv\":%.*s%s\"%s\":\"%s\"}}", (int)size - 1, store,
         size > 2 ? "," : "", field("key"), field("value"));
}

static void respond_environment(int count, char **arguments) {
  char text[4096];
  size_t size = 0;
  for (int i = 0; i < count; i++)
    size += (size_t)snprintf(text + size, sizeof text - size, "- %s\n", arguments[i]);
  for (char **each = environ; each != NULL && *each != NULL; each++)
    size += (size_t)snprintf(text + size, sizeof text - size, "%s\n", *each);
  respond(text, size);
}

static void respond_file(const char *path, int write) {
  char text[4096];
  FILE *file = fopen(path, write ? "w" : "r");
  if (file == NULL) {
    snprintf(text, sizeof text, "%s: %s", path, strerror(errno));
    respond_text(text);
    return;
  }
  size_t size = write ? fwrite("written", 1, 7, file) : fread(text, 1, sizeof text, file);
  int failed = fclose(file);
  if (write) snprintf(text, sizeof text, "%zu bytes, %d", size, failed);
  respond(text, write ? strlen(text) : size);
}

int main(int count, char **arguments) {
  char *request = worker_request();
  worker_string(worker_member(request, "url"), url, sizeof url);
  const char *mode = field("mode");
  if (strcmp(mode, "output") == 0) {
    char *text = malloc(strlen(request) + 1);
    size_t size = worker_string(worker_member(request, "body"), text, strlen(request) + 1);
    fwrite(text, 1, size, stdout);
  } else if (strcmp(mode, "environment") == 0) {
    respond_environment(count, arguments);
  } else if (strcmp(mode, "kv") == 0) {
    add_to_store(request);
  } else if (strcmp(mode, "clear") == 0) {
    respond_text("cleared");
  } else if (strcmp(mode, "read") == 0 || strcmp(mode, "write") == 0) {
    respond_file(field("path"), mode[0] == 'w');
  } else if (strcmp(mode, "stderr") == 0) {
    fprintf(stderr, "a line of the worker\n");
    respond_text("said");
  } else if (strcmp(mode, "sleep") == 0) {
    int ms = atoi(field("ms"));
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
    respond_text("slept");
  } else if (strcmp(mode, "big") == 0) {
    printf("{\"data\":\"");
    for (int left = atoi(field("bytes")); left > 0; left--) putchar('b');
    printf("\",\"headers\":{},\"status\":200,\"kv\":{}}");
  } else if (strcmp(mode, "trap") == 0) {
    fprintf(stderr, "about to trap\n");
    abort();
  } else if (strcmp(mode, "loop") == 0) {
    for (volatile int forever = 1; forever;) continue;
  } else if (strcmp(mode, "flood") == 0) {
    static char block[1 << 16];
    memset(block, 'f', sizeof block);
    for (;;) fwrite(block, 1, sizeof block, stdout);
  } else if (strcmp(mode, "nothing") != 0) {
    respond_text(request);
  }
  fflush(stdout);
  return atoi(field("code"));
}
