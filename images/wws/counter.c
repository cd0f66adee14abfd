/* Counts requests in its key-value store. */
#include "worker.h"

int main(void) {
  char text[32];
  const char *store = worker_member(worker_request(), "kv");
  worker_string(worker_member(store, "count"), text, sizeof text);
  int count = atoi(text) + 1;
  printf("{\"data\":\"%d\",\"headers\":{\"content-type\":\"text/plain\"},\"status\":200,"
         "\"kv\":{\"count\":\"%d\"}}",
         count, count);
  return 0;
}
