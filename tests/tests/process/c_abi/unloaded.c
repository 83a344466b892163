// A plugin that loads the library and goes takes it away from nobody: unloaded. Not linked with the library.

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static int is_loaded(void) {
    char line[4096];
    int found = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL) {
        found |= strstr(line, "liblapis.so") != NULL;
    }
    if (maps != NULL) {
        fclose(maps);
    }
    return found;
}

int main(void) {
    if (is_loaded()) {
        return 1;
    }
    void *library = dlopen("liblapis.so.0", RTLD_NOW);
    if (library == NULL || dlsym(library, "lapis_connect") == NULL || dlclose(library) != 0) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    puts(is_loaded() ? "stays" : "went");
    return 0;
}
