// Preloaded into GStreamer, it makes the DTLS certificates there P-256 instead of RSA.
//
// GStreamer's DTLS elements make themselves an RSA certificate and have no option for another one. The DTLS of our WebRTC engine takes
// ECDSA only, which is what RFC 8827 §6.5 asks everybody for. The elements make their key by these two calls of libcrypto.

#include <dlfcn.h>
#include <stddef.h>

enum { RSA_KEY = 6, EC_KEY_TYPE = 408, P256 = 415 };

int RSA_generate_key_ex(void *rsa, int bits, void *exponent, void *callback) {
    (void)rsa, (void)bits, (void)exponent, (void)callback;
    return 1; // `EVP_PKEY_assign` throws the key away
}

int EVP_PKEY_assign(void *pkey, int type, void *key) {
    // Loaded already, or nobody would call us; but by a plugin, so that no search finds it by itself.
    void *crypto = dlopen("libcrypto.so.3", RTLD_LAZY | RTLD_NOLOAD);
    int (*assign)(void *, int, void *) = dlsym(crypto, "EVP_PKEY_assign");
    if (type != RSA_KEY)
        return assign(pkey, type, key);
    void *(*new_key)(int) = dlsym(crypto, "EC_KEY_new_by_curve_name");
    int (*generate)(void *) = dlsym(crypto, "EC_KEY_generate_key");
    void (*free_rsa)(void *) = dlsym(crypto, "RSA_free");
    void *ec = new_key(P256);
    if (ec == NULL || !generate(ec) || !assign(pkey, EC_KEY_TYPE, ec))
        return 0;
    free_rsa(key);
    return 1;
}
