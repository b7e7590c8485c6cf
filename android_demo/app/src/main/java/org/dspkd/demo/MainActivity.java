package org.dspkd.demo;

import android.app.Activity;
import android.content.ActivityNotFoundException;
import android.content.ClipData;
import android.content.Intent;
import android.graphics.Bitmap;
import android.graphics.Typeface;
import android.net.Uri;
import android.os.Build;
import android.os.Bundle;
import android.provider.MediaStore;
import android.view.View;
import android.view.ViewGroup;
import android.widget.Button;
import android.widget.ImageView;
import android.widget.ProgressBar;
import android.widget.TextView;
import androidx.core.content.FileProvider;
import java.io.File;
import java.io.IOException;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/** One screen: the model and whether it answers here as it did at export, a picture, and the student's answer. */
public final class MainActivity extends Activity {
    private static final int CHOOSE = 1;
    private static final int PHOTOGRAPH = 2;

    // One thread for all that takes time; artifact, model and prepared are touched by no other.
    private final ExecutorService worker = Executors.newSingleThreadExecutor();
    private Artifact artifact;
    private Model model;
    private Rgb prepared;

    private TextView modelLine;
    private TextView checkLine;
    private TextView answerLine;
    private TextView timingLine;
    private ImageView seen;
    private ViewGroup answers;
    private Button choose;
    private Button photograph;
    private Button time;

    @Override
    protected void onCreate(Bundle savedInstanceState) {
        super.onCreate(savedInstanceState);
        setContentView(R.layout.main);
        modelLine = findViewById(R.id.model_line);
        checkLine = findViewById(R.id.check_line);
        answerLine = findViewById(R.id.answer_line);
        timingLine = findViewById(R.id.timing_line);
        seen = findViewById(R.id.seen);
        answers = findViewById(R.id.answers);
        choose = findViewById(R.id.choose);
        photograph = findViewById(R.id.photograph);
        time = findViewById(R.id.time);
        choose.setOnClickListener(view -> chooseAPicture());
        photograph.setOnClickListener(view -> takeAPhoto());
        time.setOnClickListener(view -> {
            timingLine.setText(R.string.timing);
            worker.execute(this::measure);
        });
        worker.execute(this::load);
        Intent intent = getIntent();
        if (savedInstanceState == null && Intent.ACTION_SEND.equals(intent.getAction())) {
            Uri shared = intent.getParcelableExtra(Intent.EXTRA_STREAM);
            if (shared != null) {
                worker.execute(() -> answer(shared));
            }
        }
    }

    @Override
    protected void onDestroy() {
        worker.execute(() -> {
            if (model != null) {
                model.close();
            }
        });
        worker.shutdown();
        super.onDestroy();
    }

    @Override
    protected void onActivityResult(int request, int result, Intent data) {
        if (request == PHOTOGRAPH) {
            worker.execute(() -> {
                if (result == RESULT_OK) {
                    answer(Uri.fromFile(photo()));
                }
                // A picture of a patient stays nowhere.
                photo().delete();
            });
        } else if (request == CHOOSE && result == RESULT_OK && data != null && data.getData() != null) {
            worker.execute(() -> answer(data.getData()));
        }
    }

    private void chooseAPicture() {
        Intent intent = new Intent(Intent.ACTION_GET_CONTENT).addCategory(Intent.CATEGORY_OPENABLE).setType("image/*");
        startOrExplain(intent, CHOOSE, R.string.no_gallery);
    }

    private void takeAPhoto() {
        Uri target = FileProvider.getUriForFile(this, getPackageName() + ".photos", photo());
        Intent intent = new Intent(MediaStore.ACTION_IMAGE_CAPTURE).putExtra(MediaStore.EXTRA_OUTPUT, target)
                .addFlags(Intent.FLAG_GRANT_WRITE_URI_PERMISSION);
        // Flags speak of an intent's data and clips, not of its extras.
        intent.setClipData(ClipData.newRawUri(null, target));
        startOrExplain(intent, PHOTOGRAPH, R.string.no_camera);
    }

    private File photo() {
        return new File(getCacheDir(), "photo.jpg");
    }

    private void startOrExplain(Intent intent, int request, int explanation) {
        try {
            startActivityForResult(intent, request);
        } catch (ActivityNotFoundException e) {
            answerLine.setText(explanation);
        }
    }

    private void load() {
        try {
            artifact = Artifact.read(ModelFiles.folder(this), OrgJson::parse);
            model = new ExecuTorchModel(artifact.program, artifact.takesBytes);
            Golden.Verdict verdict = artifact.golden.check(model, artifact.precision);
            String summary = artifact.summary()
                    + (artifact.certificatePassed ? "" : "\n" + getString(R.string.certificate_failed));
            if (verdict.holds()) {
                show(() -> {
                    modelLine.setText(summary);
                    checkLine.setText(getString(R.string.check_passed, verdict));
                    choose.setEnabled(true);
                    photograph.setEnabled(true);
                });
            } else {
                model.close();
                model = null;
                show(() -> {
                    modelLine.setText(summary);
                    checkLine.setText(getString(R.string.check_failed, verdict));
                });
            }
        } catch (ArtifactException | IOException | RuntimeException e) {
            show(() -> modelLine.setText(message(e)));
        } catch (LinkageError e) {
            show(() -> modelLine.setText(getString(R.string.no_runtime, String.join(", ", Build.SUPPORTED_ABIS))));
        }
    }

    private void answer(Uri uri) {
        if (model == null) {
            return;
        }
        try {
            PictureReader.Decoded decoded = PictureReader.read(getContentResolver(), uri);
            long start = System.nanoTime();
            Rgb pixels = artifact.prepare(decoded.rgb);
            long middle = System.nanoTime();
            float[] probabilities = model.probabilities(pixels);
            long end = System.nanoTime();
            prepared = pixels;
            List<String> classes = artifact.classes;
            Bitmap bitmap = Bitmap.createBitmap(pixels.argb(), pixels.width, pixels.height, Bitmap.Config.ARGB_8888);
            String line = getString(R.string.answered, (end - middle) / 1e6, (middle - start) / 1e6)
                    + (decoded.reduced == 1 ? "" : "\n" + getString(R.string.reduced, decoded.reduced));
            show(() -> {
                seen.setImageBitmap(bitmap);
                seen.setVisibility(View.VISIBLE);
                showAnswers(classes, probabilities);
                answerLine.setText(line);
                timingLine.setText("");
                time.setEnabled(true);
            });
        } catch (IOException | RuntimeException e) {
            show(() -> answerLine.setText(message(e)));
        } catch (OutOfMemoryError e) {
            show(() -> answerLine.setText(R.string.too_large));
        }
    }

    private void measure() {
        if (model == null || prepared == null) {
            return;
        }
        try {
            Timing timing = Timing.of(model, prepared);
            show(() -> timingLine.setText(timing.toString()));
        } catch (RuntimeException e) {
            show(() -> timingLine.setText(message(e)));
        }
    }

    /** In the order of the classes, so that a class is found in the same place for every picture. */
    private void showAnswers(List<String> classes, float[] probabilities) {
        answers.removeAllViews();
        int best = 0;
        for (int k = 1; k < probabilities.length; k++) {
            best = probabilities[k] > probabilities[best] ? k : best;
        }
        for (int k = 0; k < probabilities.length; k++) {
            View row = getLayoutInflater().inflate(R.layout.answer, answers, false);
            TextView name = row.findViewById(R.id.name);
            TextView percent = row.findViewById(R.id.percent);
            ProgressBar bar = row.findViewById(R.id.bar);
            name.setText(classes.get(k));
            percent.setText(getString(R.string.percent, 100 * probabilities[k]));
            bar.setProgress(Math.round(1000 * probabilities[k]));
            if (k == best) {
                name.setTypeface(name.getTypeface(), Typeface.BOLD);
                percent.setTypeface(percent.getTypeface(), Typeface.BOLD);
            }
            answers.addView(row);
        }
    }

    private void show(Runnable change) {
        runOnUiThread(() -> {
            if (!isDestroyed()) {
                change.run();
            }
        });
    }

    private static String message(Throwable problem) {
        return problem.getMessage() == null ? problem.toString() : problem.getMessage();
    }
}
