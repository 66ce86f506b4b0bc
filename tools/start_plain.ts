/**
 * What the compiled executable begins with, on bases since Deno 2.9: there `node:vm`, which alone takes code that is compiled
 * already, is itself compiled from its text when it is first asked for. That takes longer (11 ms) than to compile what a call needs.
 */
import { ENTRY, program } from "./loader.ts";

program(`${import.meta.dirname}/packs`, (text) => (0, eval)(text))(ENTRY);
