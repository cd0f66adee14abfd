/* A valid module that is no HTTP component: it has the allocator, but no handler. */
#include <stdlib.h>

__attribute__((export_name("canonical_abi_realloc")))
void *reallocate(void *old, size_t old_size, size_t align, size_t new_size) {
  (void)old_size, (void)align;
  return realloc(old, new_size);
}

__attribute__((export_name("canonical_abi_free")))
void release(void *block, size_t size, size_t align) {
  (void)size, (void)align;
  free(block);
}
