/* Says hello: the smallest worker there is. */
#include "worker.h"

int main(void) {
  printf("{\"data\":\"hello world!\",\"headers\":{\"content-type\":\"text/plain\"},"
         "\"status\":200,\"kv\":{}}");
  return 0;
}
