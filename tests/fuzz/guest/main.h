/* For compilers without libFuzzer: each file that is named is an input. */
#ifdef WITH_MAIN
int main(int argc, char **argv) {
    static uint8_t data[1 << 20];
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        size_t length = file ? fread(data, 1, sizeof data, file) : 0;
        if (file)
            fclose(file);
        fprintf(stderr, "%s\n", argv[i]);
        LLVMFuzzerTestOneInput(data, length);
    }
    return 0;
}
#endif
