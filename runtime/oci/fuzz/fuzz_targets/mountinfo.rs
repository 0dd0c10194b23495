#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    knarr_oci::fuzz::mountinfo(data);
});
