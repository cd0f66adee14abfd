/* An allocator that answers with an address beyond the module's memory. */
#include <stddef.h>
#include <stdint.h>

__attribute__((export_name("canonical_abi_realloc")))
void *reallocate(void *old, size_t old_size, size_t align, size_t new_size) {
  (void)old, (void)old_size, (void)align, (void)new_size;
  return (void *)0xffff0000;
}

__attribute__((export_name("canonical_abi_free")))
void release(void *block, size_t size, size_t align) {
  (void)block, (void)size, (void)align;
}

__attribute__((export_name("handle-http-request")))
const void *handle(uint32_t method, char *uri, size_t uri_size, void *headers, size_t header_count,
                   void *params, size_t param_count, uint32_t body_present, char *body,
                   size_t body_size) {
  (void)method, (void)uri, (void)uri_size, (void)headers, (void)header_count, (void)params;
  (void)param_count, (void)body_present, (void)body, (void)body_size;
  static const struct {
    uint16_t status;
    uint32_t parts[6];
  } no_content = {204, {0}};
  return &no_content;
}
