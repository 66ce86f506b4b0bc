/** Calls of chain of five plugins that are let down, at some points. */
import { tryShortly } from "./short_form.ts";

tryShortly("chain of five plugins");
