/* Greets whom the URL names, as /greet/Ada does, in the words of the variable GREETING. */
#include "worker.h"

int main(void) {
  char name[256];
  const char *params = worker_member(worker_request(), "params");
  size_t size = worker_string(worker_member(params, "name"), name, sizeof name);
  const char *greeting = getenv("GREETING");
  printf("{\"data\":\"%s, ", greeting != NULL ? greeting : "hello");
  worker_put(name, size);
  printf("!\",\"headers\":{\"content-type\":\"text/plain\"},\"status\":200,\"kv\":{}}");
  return 0;
}
