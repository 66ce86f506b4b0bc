/** What the compiled executable begins with: the program out of its packs. */
import { builtin, ENTRY, program } from "./loader.ts";

program(`${import.meta.dirname}/packs`, builtin)(ENTRY);
