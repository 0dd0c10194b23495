#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    knarr_image::fuzz::layer(data);
});
