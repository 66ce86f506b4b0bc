/** Version of this program; the same as in deno.json, compared by a test. */
export const VERSION = "v0.1.0";
