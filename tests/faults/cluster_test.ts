/** Calls of cluster on etcd that are let down, at some points. */
import { tryShortly } from "./short_form.ts";

tryShortly("cluster on etcd");
