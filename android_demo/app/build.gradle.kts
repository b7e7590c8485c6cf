plugins {
    id("com.android.application")
}

// -Partifact=FOLDER builds an artifact into the app. Without it the app asks for one to be opened on the phone.
val artifact = providers.gradleProperty("artifact").orNull?.let { rootProject.file(it) }
if (artifact != null) {
    for (name in listOf("artifact.json", "golden.npz", "model.pte")) {
        require(artifact.resolve(name).isFile) {
            "$artifact/$name is missing: -Partifact takes a folder of `dspkd export --target executorch`"
        }
    }
}

android {
    namespace = "org.dspkd.demo"
    compileSdk = 35

    defaultConfig {
        applicationId = "org.dspkd.demo"
        minSdk = 26
        // From 35 on, apps draw beneath the system's bars and have to make room for them.
        targetSdk = 34
        versionCode = 1
        versionName = "0.1.0"
        // What ExecuTorch's library is built for.
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    if (artifact != null) {
        sourceSets["main"].assets.srcDir(artifact)
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }

    lint {
        abortOnError = true
    }
}

dependencies {
    implementation("org.pytorch:executorch-android:${providers.gradleProperty("executorch").get()}")
    implementation("androidx.core:core:1.13.1")
}
