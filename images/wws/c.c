/* Says hello: the smallest worker in C there is. */
#include "worker.h"

int main(void) {
  printf("{\"data\":\"hello from C!\",\"headers\":{\"content-type\":\"text/plain\"},"
         "\"status\":200,\"kv\":{}}");
  return 0;
}
