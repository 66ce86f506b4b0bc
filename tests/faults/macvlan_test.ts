/** Calls of macvlan+tuning that are let down, at some points. */
import { tryShortly } from "./short_form.ts";

tryShortly("macvlan+tuning");
