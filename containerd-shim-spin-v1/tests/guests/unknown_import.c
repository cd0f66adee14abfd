/* Imports a function that no host provides: instantiation is refused. */
#include "spin.h"

__attribute__((import_module("mystery"), import_name("function"))) int mystery(int question);

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  response->status = (uint16_t)mystery((int)request->method);
}
