/* A good component whose memory begins with 3 GiB (see guests.mk). */
#include "spin.h"

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  (void)request;
  spin_answer(response, 200, "so much room\n");
}
